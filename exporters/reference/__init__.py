"""What a trained model gives for chosen inputs, recorded as the reference that parity is measured against."""
