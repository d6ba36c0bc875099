//! Logs: text or JSON, one escaped line each.
