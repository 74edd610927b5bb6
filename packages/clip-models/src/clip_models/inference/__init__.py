"""What a trained model is used for: features, labels, scores, embeddings of whole data sets, and what that costs."""
