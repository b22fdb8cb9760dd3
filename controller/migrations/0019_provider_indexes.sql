-- How what the provider vouches for is looked up: by the session at the provider, and by when it was checked last.

CREATE INDEX provider_sessions_by_sid ON provider_sessions (issuer, sid);
CREATE INDEX provider_sessions_by_check ON provider_sessions (checked_at) WHERE refresh_token IS NOT NULL;
