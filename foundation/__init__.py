"""What every stage stands on: artefact directories, recipes, the fetcher, the console. Knows nothing of ranking."""
