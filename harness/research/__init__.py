"""What only this project's own studies of Gefen need; nothing else imports it."""
