"""The command line: one thin file per subcommand. Heavy imports happen inside the commands."""
