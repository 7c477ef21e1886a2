-- What a deployment does beside text, and how it samples where the caller does not say, as its
-- recipe has it: the gateway refuses the rest by name, and tells the latter.
ALTER TABLE deployment
    ADD COLUMN features    text[]           NOT NULL DEFAULT '{}',
    ADD COLUMN temperature double precision,    -- null: not known
    ADD COLUMN top_p       double precision;
