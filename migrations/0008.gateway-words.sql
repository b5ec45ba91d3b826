-- depends: 0003.secret-key

-- Why it is misconfigured, and why the breaker is not closed: a sentence each. A replica of an older version leaves the
-- sentence behind when it changes the state; it is shown only beside the state that it explains.
ALTER TABLE gateways ADD COLUMN detail text, ADD COLUMN breaker_detail text;

-- Keyed hash of the address and token that some replica began to use last: a refusal made with others stops nobody else.
ALTER TABLE gateways ADD COLUMN identity text;
