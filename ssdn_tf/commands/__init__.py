"""The commands: flags, and all sentences about flags."""
