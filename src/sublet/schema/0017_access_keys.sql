-- Keys for clients that sign their requests instead of showing a secret: AWS's Signature Version 4.
-- Whoever checks a signature needs the secret itself, so it cannot be kept as a digest: it is
-- sealed with a key that is not in this database. Name, owner, end and revocation are the API
-- key's.
CREATE TABLE access_key (
    key_id        uuid  PRIMARY KEY REFERENCES api_key,
    access_key_id text  NOT NULL UNIQUE CHECK (access_key_id <> ''),
    sealed_secret bytea NOT NULL
);

-- Signatures that some gateway has served, for as long as they could be used again: minutes. Not
-- a record, so it is not logged: a crash of this server forgets it, and costs at most one repeat.
CREATE UNLOGGED TABLE used_signature (
    signature bytea       PRIMARY KEY,
    used_at   timestamptz NOT NULL
);
CREATE INDEX used_signature_at ON used_signature (used_at);
