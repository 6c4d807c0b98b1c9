"""What the report's words mean, a line each."""

TERMS = (
    ("AUC", "Probability that a random positive row gets a higher score than a random negative one; 0.5 is chance."),
    ("GAUC", "AUC inside every group (user or request), averaged by the groups' sizes; groups of one class are out."),
    ("LogLoss, NE", "Mean negative log-likelihood per row; NE divides it by that of always predicting the base rate."),
    ("Calibration, ECE", "Sum of predictions over sum of labels (1 is right); ECE is the mean gap in equal-mass bins."),
    ("NDCG@k", "Discounted gain of the first k rows of each group, relative to the best possible order."),
    ("metric@space", "The rows a metric is taken on: like@all on all rows, love@like where like is 1."),
    ("±", "Standard deviation over the seeds. A difference smaller than it is no difference."),
    ("train, arch, valid, test", "Rows for weights, for the search, for choices, and for one final reading."),
    ("searched", "An architecture found by a method, retrained from scratch with a fresh optimiser."),
    ("control", "The unsearched model: every field at full width, every pair of fields."),
    ("rule", "An architecture that follows from counts or a single width, without a search; it can be chosen."),
    ("random", "An architecture of the same cost that nobody searched. What beats only the control may be luck."),
    ("embedding parameters", "Stored values of the embedding tables and their projections; pruned values take none."),
    ("FLOPs", "Additions and multiplications of one row's forward pass, counted from the built network."),
    ("bytes", "Stored size in 32-bit floats; a value mask adds one bit for every value of its table."),
    ("plain training", "One training of the unsearched control; the unit in which a search's cost is told."),
    ("fused score", "One number per row made of all objectives' scores; the order that users would see."),
    ("Pareto front", "Fusions of which none is better in one objective without being worse in another."),
    ("reused", "DVC restored the stage's outputs: same inputs, parameters and code as in the run named."),
)
