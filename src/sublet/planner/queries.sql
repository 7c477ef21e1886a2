-- name: put_plan
INSERT INTO surplus_plan (pool, made_at, plan)
VALUES (%(pool)s, %(made_at)s, %(plan)s)
    ON CONFLICT (pool) DO UPDATE SET made_at = EXCLUDED.made_at, plan = EXCLUDED.plan
 WHERE surplus_plan.made_at <= EXCLUDED.made_at;

-- name: list_plans
SELECT pool, made_at, plan FROM surplus_plan ORDER BY pool;

-- name: get_plans
SELECT pool, made_at, plan FROM surplus_plan WHERE pool = ANY(%(pools)s::text[]);
