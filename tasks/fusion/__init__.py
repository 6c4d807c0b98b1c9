"""What the stage tune_fusion tells of its search: documents and figures."""
