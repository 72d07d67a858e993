"""Tasks and what they are asked from: found, rendered in a sandbox, fed with the user's rows or transcripts."""
