"""Decide, by a judge's scores, which candidates become positives or are set aside, and which positives are bad.

Decisions are a table of the pools next to what was mined, so nothing is deleted: with another rule they are others.
Everything that reads the pools reads views of what is left (see schemas/pools.py).
"""

from collections import Counter
from pathlib import Path

from ...schemas.judge_settings import JudgeSettings, Threshold
from ..corpus.pools import open_pools, write_decisions
from .grades import PERSON

_DECIDE = """
WITH judged AS (
    SELECT query_id, passage_id, max(score) FILTER (judge = $judge) AS score,
           CAST(coalesce(max(score) FILTER (judge = $person), max(score) FILTER (judge = $grader)) AS INTEGER) AS grade,
           coalesce(max(judge) FILTER (judge = $person), max(judge) FILTER (judge = $grader), $judge) AS name
    FROM judgements WHERE judge IN ($judge, $grader, $person) GROUP BY ALL),
bad AS (
    SELECT query_id, passage_id, mined_positives.score, name
    FROM mined_positives JOIN judged USING (query_id, passage_id)
    WHERE coalesce(grade <= 1, judged.score < CAST($irrelevant AS FLOAT))),
positive AS (
    SELECT query_id, min(judged.score) AS lowest
    FROM mined_positives ANTI JOIN bad USING (query_id, passage_id) JOIN judged USING (query_id, passage_id)
    GROUP BY query_id),
candidate AS (
    SELECT query_id, unnest(passage_ids) AS passage_id, unnest(scores) AS mined FROM mined_candidates
    SEMI JOIN judged USING (query_id)),
found AS (
    SELECT query_id, passage_id, mined AS score, name,
           CASE WHEN coalesce(grade = 3, {relabel}) THEN 'positive'
                WHEN coalesce(grade = 2, {set_aside}) THEN 'ambiguous' END AS decision
    FROM candidate JOIN judged USING (query_id, passage_id) LEFT JOIN positive USING (query_id)),
member AS (
    SELECT passage_id, unnest(coalesce(cluster_ids, [cluster_id])) AS cluster FROM passages
    SEMI JOIN candidate USING (passage_id)),
near AS (
    SELECT DISTINCT candidate.query_id, candidate.passage_id, candidate.mined AS score, 'near_duplicate' AS decision,
           $judge AS name
    FROM (SELECT query_id, cluster FROM found JOIN member USING (passage_id) WHERE decision IS NOT NULL) answering
    JOIN member USING (cluster) JOIN candidate USING (query_id, passage_id)
    ANTI JOIN (FROM found WHERE decision IS NOT NULL) USING (query_id, passage_id))
SELECT query_id, passage_id, decision, name AS judge, score FROM (
    SELECT query_id, passage_id, decision, score, name FROM found WHERE decision IS NOT NULL
    UNION ALL SELECT query_id, passage_id, decision, score, name FROM near
    UNION ALL SELECT query_id, passage_id, 'irrelevant', score, name FROM bad)
ORDER BY query_id, passage_id
"""
"""A near-duplicate of what answers a query is no negative of it either, as in mining. Grades are those of grades.py."""


def decide(corpus: Path, settings: JudgeSettings, judge: str, grader: str = "") -> Counter[str]:
    """Apply the rule of the settings to what a judge has said about the pools; count the decisions.

    Where `grader` has given a grade, it counts in place of the judge's score, and a person's in place of both.

    Raises:
        PoolsInUseError: another process has the database open.
    """
    sql = _DECIDE.format(relabel=_reaches(settings.relabel), set_aside=_reaches(settings.set_aside))
    with open_pools(corpus) as pools:
        decisions = pools.sql(
            sql, params={"judge": judge, "grader": grader, "person": PERSON, "irrelevant": settings.irrelevant}
        ).to_arrow_table()
    write_decisions(corpus, decisions, settings.decisive)
    return Counter(decisions["decision"].to_pylist())


def _reaches(threshold: Threshold | None) -> str:
    """Build the SQL for whether a score reaches a threshold. Scores are FLOAT, and 0.9 is less as a FLOAT."""
    if threshold is None:
        return "false"
    conditions = []
    if threshold.score is not None:
        conditions.append(f"judged.score >= CAST({threshold.score} AS FLOAT)")
    if threshold.margin is not None:
        conditions.append(f"judged.score >= lowest - CAST({threshold.margin} AS FLOAT)")
    return " AND ".join(conditions)
