-- What one more GPU of a pool is worth to those who may come later, as it was found last.

CREATE TABLE bid (
    pool    text        PRIMARY KEY REFERENCES pool,
    made_at timestamptz NOT NULL,
    bids    json                    -- null: too little demand was seen, the price book decides
);
