-- How the provider's own report of an image is priced: empty if it is not, `reported` for its own figure in USD, or token
-- prices as JSON. NULL in rows of before: by the file of the gateway that sold it.
ALTER TABLE prices ADD COLUMN measured_by bytewise;
