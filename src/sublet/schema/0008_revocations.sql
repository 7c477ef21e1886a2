-- Every gateway asks some times a second which keys were revoked of late.
CREATE INDEX api_key_revoked ON api_key (revoked_at) WHERE revoked_at IS NOT NULL;
