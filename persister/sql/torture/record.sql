-- What the clients asked and were answered, and what may be gone; gateway/torture/recorder.py says what the columns are.
CREATE TEMP TABLE torture_record (
    id uuid NOT NULL, what smallint NOT NULL, level smallint NOT NULL, number smallint NOT NULL, flag smallint NOT NULL,
    asked_us bigint NOT NULL, at_us bigint NOT NULL,
    sequence bigint NOT NULL, debit bigint NOT NULL, credit bigint NOT NULL, amount bigint NOT NULL
);
CREATE TEMP TABLE torture_loss (level smallint NOT NULL, until_us bigint NOT NULL, after_sequence bigint NOT NULL)
