-- When the credentials of a local account were set anew, and passkeys of which there may be two.
-- Times are milliseconds since the Unix epoch.

ALTER TABLE local_accounts ADD COLUMN secured_at INTEGER;   -- sign-ins proven until then count no more; NULL if never
ALTER TABLE local_passkeys ADD COLUMN copied_at INTEGER;    -- its counter went back then: it signs nobody in; NULL if never
