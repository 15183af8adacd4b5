"""The table: which rule shows that an operator keeps rows apart. What is not here is not proved.

Keys are the operator's name, with its domain before a colon where that is not ai.onnx. Left out on purpose: what looks
at the whole tensor (DynamicQuantizeLinear and all that builds on it), what drops or finds elements (Compress, NonZero,
Unique, NonMaxSuppression), what draws random numbers.
"""

from . import elementwise, indexing, matrices, reducing, sequences, shaping, spatial, tables
from .values import Rule

_GROUPS: list[tuple[Rule, str]] = [
    (
        elementwise.elementwise,
        """Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor CastLike
        Ceil Celu Cos Cosh Div Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish
        IsInf IsNaN LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or PRelu Pow
        Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Sub Sum Swish Tan
        Tanh ThresholdedRelu Where Xor StringConcat RegexFullMatch com.microsoft:Gelu
        com.microsoft:BiasGelu com.microsoft:FastGelu com.microsoft:QuickGelu ai.onnx.ml:LabelEncoder
        ai.onnx.ml:CategoryMapper ai.onnx.ml:Binarizer""",
    ),
    (elementwise.identity, "Identity"),
    (elementwise.cast, "Cast"),
    (elementwise.clip, "Clip"),
    (elementwise.dropout, "Dropout"),
    (elementwise.quantise, "QuantizeLinear DequantizeLinear"),
    (
        elementwise.quantised_elementwise,
        """com.microsoft:QLinearAdd com.microsoft:QLinearMul com.microsoft:QLinearSigmoid
        com.microsoft:QLinearLeakyRelu""",
    ),
    (indexing.gather, "Gather"),
    (indexing.gather_elements, "GatherElements ScatterElements Scatter"),
    (indexing.gather_nd, "GatherND"),
    (indexing.cut, "Slice"),
    (indexing.one_hot, "OneHot ai.onnx.ml:OneHotEncoder"),
    (indexing.pick_columns, "ai.onnx.ml:ArrayFeatureExtractor"),
    (matrices.matmul, "MatMul com.microsoft:FusedMatMul"),
    (matrices.quantised_matmul, "QLinearMatMul"),
    (matrices.integer_matmul, "MatMulInteger com.microsoft:MatMulIntegerToFloat"),
    (matrices.gemm, "Gemm com.microsoft:FusedGemm"),
    (matrices.packed_matmul, "com.microsoft:MatMulNBits"),
    (matrices.einsum, "Einsum"),
    (matrices.distances, "com.microsoft:CDist"),
    (reducing.softmax, "Softmax LogSoftmax Hardmax"),
    (
        reducing.reduce,
        """ReduceSum ReduceMean ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp
        ReduceSumSquare""",
    ),
    (reducing.arg_extreme, "ArgMax ArgMin"),
    (reducing.cumulate, "CumSum CumProd"),
    (reducing.top, "TopK"),
    (reducing.lp_normalise, "LpNormalization"),
    (
        reducing.layer_norm,
        """LayerNormalization RMSNormalization SimplifiedLayerNormalization com.microsoft:LayerNormalization
        com.microsoft:SimplifiedLayerNormalization""",
    ),
    (
        reducing.skip_layer_norm,
        "com.microsoft:SkipLayerNormalization com.microsoft:SkipSimplifiedLayerNormalization",
    ),
    (reducing.mean_variance, "MeanVarianceNormalization"),
    (sequences.recurrent, "LSTM GRU RNN"),
    (sequences.attention, "com.microsoft:Attention com.microsoft:MultiHeadAttention"),
    (sequences.embed, "com.microsoft:EmbedLayerNormalization"),
    (shaping.reshape, "Reshape"),
    (shaping.flatten, "Flatten"),
    (shaping.squeeze, "Squeeze"),
    (shaping.unsqueeze, "Unsqueeze"),
    (shaping.transpose, "Transpose"),
    (shaping.tile, "Tile"),
    (shaping.expand, "Expand"),
    (shaping.constant_of_shape, "ConstantOfShape"),
    (shaping.number_range, "Range"),
    (shaping.concat, "Concat"),
    (shaping.pad, "Pad"),
    (shaping.split, "Split"),
    (shaping.resize, "Resize Upsample"),
    (shaping.triangle, "Trilu"),
    (spatial.convolve, "Conv ConvTranspose DeformConv"),
    (spatial.quantised_convolve, "QLinearConv"),
    (spatial.integer_convolve, "ConvInteger"),
    (spatial.fused_convolve, "com.microsoft:FusedConv"),
    (spatial.blocked_convolve, "com.microsoft.nchwc:Conv"),
    (
        spatial.pool,
        "MaxPool AveragePool LpPool com.microsoft.nchwc:MaxPool com.microsoft.nchwc:AveragePool",
    ),
    (spatial.quantised_pool, "com.microsoft:QLinearAveragePool"),
    (
        spatial.global_pool,
        """GlobalMaxPool GlobalAveragePool GlobalLpPool com.microsoft.nchwc:GlobalMaxPool
        com.microsoft.nchwc:GlobalAveragePool""",
    ),
    (spatial.normalise, "LRN InstanceNormalization GroupNormalization"),
    (spatial.batch_norm, "BatchNormalization"),
    (spatial.rearrange, "DepthToSpace SpaceToDepth com.microsoft.nchwc:ReorderInput"),
    (spatial.reorder_output, "com.microsoft.nchwc:ReorderOutput"),
    (spatial.grid_sample, "GridSample"),
    (spatial.short_time_fourier, "STFT"),
    (spatial.fourier, "DFT"),
    (
        tables.classifier,
        "ai.onnx.ml:TreeEnsembleClassifier ai.onnx.ml:LinearClassifier ai.onnx.ml:SVMClassifier",
    ),
    (
        tables.regressor,
        """ai.onnx.ml:TreeEnsembleRegressor ai.onnx.ml:TreeEnsemble ai.onnx.ml:LinearRegressor
        ai.onnx.ml:SVMRegressor TfIdfVectorizer""",
    ),
    (tables.same_table, "ai.onnx.ml:Normalizer ai.onnx.ml:Scaler ai.onnx.ml:Imputer"),
    (tables.join_features, "ai.onnx.ml:FeatureVectorizer"),
    (tables.zip_map, "ai.onnx.ml:ZipMap"),
    (tables.string_normaliser, "StringNormalizer"),
    (tables.hashes, "com.microsoft:MurmurHash3"),
]

RULES: dict[str, Rule] = {operator: rule for rule, operators in _GROUPS for operator in operators.split()}

# What gives something else each time, even from what is the same for all batches.
_RANDOM = """
    RandomNormal RandomUniform RandomNormalLike RandomUniformLike Multinomial Bernoulli com.microsoft:Sampling
    com.microsoft:BeamSearch com.microsoft:GreedySearch com.microsoft:WhisperBeamSearch com.microsoft:SampleOp
"""
RANDOM = frozenset(_RANDOM.split())
