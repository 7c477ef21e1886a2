-- What an e-invoice needs to know of whom it is addressed to; '' where nobody said.

ALTER TABLE billing_profile
    ADD COLUMN country   text NOT NULL DEFAULT '' CHECK (country ~ '^([A-Z]{2})?$'),
    ADD COLUMN endpoint  text NOT NULL DEFAULT '',  -- the network's address, such as 0088:7300010000001
    ADD COLUMN reference text NOT NULL DEFAULT '';  -- that the buyer wants named, such as an order
