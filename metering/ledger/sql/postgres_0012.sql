-- From when on each price holds. A list is a file of models as a gateway took it, and has rows for the prices that it
-- changed or added: `version` holds from `from_us` on, and `version_before` until then. The last row of a price is right.

CREATE TABLE price_lists (
    number       BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    version      bytewise NOT NULL REFERENCES price_books (version),
    effective_us BIGINT NOT NULL CHECK (effective_us >= 0),
    at_us        BIGINT NOT NULL CHECK (at_us > 0),
    at           bytewise NOT NULL
);
CREATE INDEX price_lists_by_version ON price_lists (version, effective_us);

CREATE TABLE price_schedules (
    number         BIGINT NOT NULL REFERENCES price_lists (number),
    model          bytewise NOT NULL,
    variant        bytewise NOT NULL,
    version        bytewise NOT NULL,
    from_us        BIGINT NOT NULL CHECK (from_us >= 0),
    version_before bytewise,
    PRIMARY KEY (number, model, variant),
    FOREIGN KEY (version, model, variant) REFERENCES prices (version, model, variant),
    FOREIGN KEY (version_before, model, variant) REFERENCES prices (version, model, variant)
);

DO $$
DECLARE kept name;
BEGIN
    FOREACH kept IN ARRAY ARRAY['price_lists', 'price_schedules'] LOOP
        EXECUTE format(
            'CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON %I'
            ' FOR EACH STATEMENT EXECUTE FUNCTION refuse()',
            kept
        );
        EXECUTE format('ALTER TABLE %I ENABLE ALWAYS TRIGGER append_only', kept);
    END LOOP;
END $$;
