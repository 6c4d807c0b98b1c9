"""What encode does: values to ids, rows to fixed-width records, records to memory-mappable columns."""
