"""DuckDB DDL: the tables of pools.duckdb."""

POOLS = """
CREATE TABLE IF NOT EXISTS runs (
    run_id VARCHAR PRIMARY KEY,
    model_fingerprint VARCHAR NOT NULL,  -- a hash of the weights, never a name
    method VARCHAR NOT NULL,
    margin DOUBLE NOT NULL,
    top_k INTEGER NOT NULL,
    fingerprint VARCHAR NOT NULL,        -- of everything that decides the pools: a second run with it is skipped
    created_at TIMESTAMP NOT NULL
);
CREATE TABLE IF NOT EXISTS passages (
    passage_id BIGINT PRIMARY KEY,
    text VARCHAR NOT NULL,
    cluster_id BIGINT NOT NULL
);
CREATE TABLE IF NOT EXISTS queries (
    query_id BIGINT PRIMARY KEY,
    text VARCHAR NOT NULL
);
CREATE TABLE IF NOT EXISTS positives (
    query_id BIGINT NOT NULL,
    passage_id BIGINT NOT NULL,
    score FLOAT NOT NULL
);
CREATE TABLE IF NOT EXISTS candidates (
    query_id BIGINT PRIMARY KEY,
    run_id VARCHAR NOT NULL,
    passage_ids BIGINT[] NOT NULL,       -- best first: rank = position, counted from 0
    scores FLOAT[] NOT NULL
);
CREATE TABLE IF NOT EXISTS windows (
    query_id BIGINT NOT NULL,
    round INTEGER NOT NULL,
    lo INTEGER NOT NULL,
    hi INTEGER NOT NULL,
    initial_score FLOAT,
    last_score FLOAT,
    step BIGINT NOT NULL
);
CREATE TABLE IF NOT EXISTS replacements (
    step BIGINT NOT NULL,
    query_id BIGINT NOT NULL,
    round INTEGER NOT NULL,
    old_score FLOAT NOT NULL,
    initial_score FLOAT NOT NULL,
    lo INTEGER NOT NULL,
    hi INTEGER NOT NULL
);
"""
