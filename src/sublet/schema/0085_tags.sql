-- What tenants call things by: API keys, leases, reserved windows. From then on it holds of what is
-- charged for them; what was charged before keeps the tags of its time. A record.
CREATE TABLE tagging (
    subject     uuid        NOT NULL,           -- a key, a lease or a reservation
    tenant_id   uuid        NOT NULL REFERENCES tenant,
    tags        jsonb       NOT NULL CHECK (jsonb_typeof(tags) = 'object'),
    happened_at timestamptz NOT NULL,
    recorded_at timestamptz NOT NULL,
    record      bigint      GENERATED ALWAYS AS IDENTITY UNIQUE
);
CREATE INDEX tagging_of ON tagging (subject, happened_at DESC, record DESC) INCLUDE (tags);

DO $$
BEGIN
    CREATE TRIGGER the_past_stands BEFORE UPDATE OR DELETE ON tagging
        FOR EACH ROW EXECUTE FUNCTION refuse_change();
    CREATE TRIGGER the_past_is_not_cut BEFORE TRUNCATE ON tagging
        FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
END $$;
