-- What was used of each model, by the minute: summed up beside the record, so that what a deployment
-- earns is known without reading all of it. Not a record: it can be made again from usage and charge.
CREATE TABLE model_use (
    model              text        NOT NULL,
    minute             timestamptz NOT NULL,
    requests           bigint      NOT NULL,
    input_tokens       bigint      NOT NULL,     -- cached ones included
    output_tokens      bigint      NOT NULL,     -- reasoning included
    nanos              numeric(38,0) NOT NULL,
    PRIMARY KEY (model, minute)
);
CREATE INDEX model_use_by_minute ON model_use (minute);

-- Up to where the record is summed up.
CREATE TABLE model_use_mark (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    record   bigint  NOT NULL
);
INSERT INTO model_use_mark (record) VALUES (0);
