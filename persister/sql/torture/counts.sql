-- How many requests were answered in which way: by level acknowledged, and refused or not applied.
SELECT
    (SELECT count(DISTINCT id) FROM torture_acknowledged),
    (SELECT count(DISTINCT id) FROM torture_acknowledged WHERE level = 0),
    (SELECT count(DISTINCT id) FROM torture_acknowledged WHERE level = 1),
    (SELECT count(DISTINCT id) FROM torture_acknowledged WHERE level = 2),
    (SELECT count(DISTINCT id) FROM torture_record WHERE what = 1 AND number NOT IN (0, 1)),
    (SELECT count(*) FROM torture_record WHERE what = 3),
    (SELECT count(*) FROM torture_record WHERE what = 2),
    (SELECT count(*) FROM torture_asked)
