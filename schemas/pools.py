"""DuckDB DDL of pools.duckdb."""

POOLS = """
CREATE TABLE IF NOT EXISTS runs (
    run_id VARCHAR PRIMARY KEY,
    model_fingerprint VARCHAR NOT NULL,  -- hash of the weights, not the model's name
    method VARCHAR NOT NULL,
    margin DOUBLE NOT NULL,              -- of the method: a score, a share, or a number of skipped ranks
    top_k INTEGER NOT NULL,
    index VARCHAR,                       -- FAISS factory string; Flat: every passage was compared
    queries_from VARCHAR[],              -- folders of convert/
    passages_from VARCHAR[],
    queries BIGINT,
    passages BIGINT,
    truncated BIGINT,                    -- texts in the folders of vectors/ that were cut to the model's length
    fingerprint VARCHAR NOT NULL,        -- of everything that decides the pools; equal: mining is skipped
    created_at TIMESTAMP NOT NULL
);
CREATE TABLE IF NOT EXISTS passages (
    passage_id BIGINT PRIMARY KEY,
    text VARCHAR NOT NULL,
    source VARCHAR,                      -- whose prompt goes before it: the first by name of those that have the text
    vectors VARCHAR,                     -- folder of vectors/
    cluster_id BIGINT NOT NULL,          -- the smallest of its clusters
    cluster_ids BIGINT[]                 -- all of them
);
CREATE TABLE IF NOT EXISTS mined_queries (
    query_id BIGINT PRIMARY KEY,
    text VARCHAR NOT NULL,
    source VARCHAR,
    vectors VARCHAR
);
CREATE TABLE IF NOT EXISTS mined_positives (
    query_id BIGINT NOT NULL,
    passage_id BIGINT NOT NULL,
    score FLOAT NOT NULL
);
CREATE TABLE IF NOT EXISTS mined_candidates (
    query_id BIGINT PRIMARY KEY,
    run_id VARCHAR NOT NULL,
    passage_ids BIGINT[] NOT NULL,       -- best first; the position from 0 is the rank
    scores FLOAT[] NOT NULL
);
CREATE TABLE IF NOT EXISTS windows (
    query_id BIGINT NOT NULL,
    round INTEGER NOT NULL,
    lo INTEGER NOT NULL,
    hi INTEGER NOT NULL,
    initial_score FLOAT,
    last_score FLOAT,
    step BIGINT NOT NULL,
    slot INTEGER                         -- of the single negative whose window it is; NULL under policy v1
);
CREATE TABLE IF NOT EXISTS replacements (
    step BIGINT NOT NULL,
    query_id BIGINT NOT NULL,
    round INTEGER NOT NULL,
    old_score FLOAT NOT NULL,
    initial_score FLOAT NOT NULL,
    lo INTEGER NOT NULL,
    hi INTEGER NOT NULL,
    slot INTEGER
);
CREATE TABLE IF NOT EXISTS judgements (
    query_id BIGINT NOT NULL,
    passage_id BIGINT NOT NULL,
    judge VARCHAR NOT NULL,              -- kind and hash of what decides its scores
    score FLOAT NOT NULL,
    verdict VARCHAR,                     -- of judges that give one in words
    created_at TIMESTAMP NOT NULL
);
CREATE TABLE IF NOT EXISTS decisions (
    query_id BIGINT NOT NULL,
    passage_id BIGINT NOT NULL,
    decision VARCHAR NOT NULL,           -- positive, ambiguous or near_duplicate: a candidate; irrelevant: a positive
    judge VARCHAR NOT NULL,
    score FLOAT NOT NULL                 -- the miner's
);
CREATE TABLE IF NOT EXISTS judging (
    settings VARCHAR NOT NULL            -- of the last `conan judge`, as JSON; no row: these pools are not judged
);
"""
"""The tables of pools.duckdb. `judgements` is filled from the store (see corpus/judgements.py)."""

WHAT_IS_LEFT = """
CREATE VIEW IF NOT EXISTS positives AS
FROM mined_positives ANTI JOIN (FROM decisions WHERE decision = 'irrelevant') USING (query_id, passage_id)
UNION ALL
SELECT query_id, passage_id, score FROM decisions WHERE decision = 'positive';
CREATE VIEW IF NOT EXISTS queries AS
FROM mined_queries ANTI JOIN (
    FROM decisions ANTI JOIN positives USING (query_id) WHERE decision = 'irrelevant') USING (query_id);
CREATE VIEW IF NOT EXISTS candidates AS
WITH dropped AS (SELECT query_id, list(passage_id) AS ids FROM decisions WHERE decision <> 'irrelevant' GROUP BY ALL),
     kept AS (
         SELECT mined_candidates.*,
                CASE WHEN ids IS NOT NULL THEN
                    list_filter(range(1, len(passage_ids) + 1),
                                lambda place: NOT list_contains(ids, passage_ids[place])) END AS places
         FROM mined_candidates LEFT JOIN dropped USING (query_id) SEMI JOIN queries USING (query_id))
SELECT query_id, run_id,
       CASE WHEN places IS NULL THEN passage_ids ELSE list_select(passage_ids, places) END AS passage_ids,
       CASE WHEN places IS NULL THEN scores ELSE list_select(scores, places) END AS scores
FROM kept;
CREATE VIEW IF NOT EXISTS decided AS
SELECT source, decision, count(*) AS pairs FROM decisions JOIN mined_queries USING (query_id)
GROUP BY ALL ORDER BY source, decision;
"""
"""The rest that a judge's decisions leave of the mined tables. Whatever reads the pools reads these views."""

SHORT_POOLS = """
CREATE VIEW IF NOT EXISTS short_pools AS
WITH short AS (
    SELECT query_id, text AS query, len(passage_ids) AS candidates, top_k AS wanted, method, margin,
           (SELECT min(score) FROM mined_positives mined WHERE mined.query_id = candidates.query_id) AS lowest_positive
    FROM candidates JOIN queries USING (query_id) JOIN runs USING (run_id) WHERE len(passage_ids) < top_k)
SELECT query_id, query, candidates, wanted, lowest_positive,
       {ceiling} AS ceiling
FROM short ORDER BY candidates, query_id;
"""
"""The view of queries with fewer candidates than `top_k`. `ceiling` is SQL over method, margin and lowest_positive."""
