"""What lets other people's software decode with this project's methods: a folder each."""
