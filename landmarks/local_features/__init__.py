"""Do two photos show the same thing? Points with descriptors, their matching, and what follows from the inliers."""
