"""The Airflow DAGs; ``graph`` reads dvc.yaml, from which they are drawn."""
