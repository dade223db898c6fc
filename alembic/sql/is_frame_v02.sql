-- Whether streams send frames of this name that are no events, or the hub takes it for a word of its own.
CREATE OR REPLACE FUNCTION rowcast.is_frame(type text) RETURNS boolean
LANGUAGE sql IMMUTABLE
AS $$
  SELECT type IN ('connected', 'caught_up', 'reset', 'end', 'bye', 'error', 'open', 'message', 'snapshot', 'subscribed', 'unsubscribed',
                  'pong', 'cancel', 'keepalive', 'progress', 'completed', 'failed', 'cancelled', 'expiring', 'access.changed')
$$
