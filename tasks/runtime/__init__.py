"""What all stages share: their life cycle, figures, manifests, workspaces, Spark and tracking."""
