"""Image and text towers, and the layers of the native ones. `build` of a tower's config returns the tower."""
