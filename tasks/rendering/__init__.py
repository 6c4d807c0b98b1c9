"""How results look: figures as SVG and PNG, and the report's page. Reads nothing, decides nothing."""
