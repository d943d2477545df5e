"""What torch's functions, methods and modules do with memory, by name."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Functions and methods of torch whose result is always new memory …
NEW = _words("""
    add sub mul div truediv neg pow sqrt rsqrt exp abs clamp matmul mm bmm baddbmm linear
    conv1d conv2d conv3d cat concat concatenate stack clone mean sum relu relu6 leaky_relu
    elu gelu silu mish sigmoid tanh softplus hardswish hardsigmoid softmax log_softmax
    layer_norm group_norm batch_norm scaled_dot_product_attention max_pool1d max_pool2d
    max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d
    adaptive_avg_pool3d zeros_like ones_like full_like rand_like randn_like
""")
# … or no tensor at all, but a fact about one.
FACTS = _words("""
    size dim numel ndimension nelement element_size is_floating_point
    shape dtype device ndim requires_grad itemsize is_cuda
""")
# The modules among torch.nn with new results: how their names begin.
NEW_MODULES = tuple(
    _words("""
    Conv Linear BatchNorm LayerNorm GroupNorm InstanceNorm MaxPool AvgPool AdaptiveAvgPool
    ReLU LeakyReLU ELU GELU SiLU Mish Sigmoid Tanh Softmax LogSoftmax Softplus Hardswish
    Hardsigmoid
""")
)
# Given tuples, these put them together, and the parts are the old ones.
PUT_TOGETHER = _words("add mul concat iadd imul iconcat")
TUPLES = _words(
    "chunk split split_with_sizes tensor_split unbind unsafe_chunk unsafe_split"
)
# They write to the statistics or the table given to them, not to their first input.
WRITE_THE_REST = _words("batch_norm instance_norm embedding embedding_bag")
# The operators +=, -= and so on, as functions.
IN_PLACE = _words("""
    iadd iand iconcat ifloordiv ilshift imatmul imod imul ior ipow irshift isub itruediv
    ixor setitem __setitem__
""")
# They treat each number alone: they read a strided part as it lies, and copy nothing.
ELEMENTWISE = _words("""
    add sub mul div truediv neg pow sqrt rsqrt exp abs clamp relu relu6 leaky_relu elu gelu
    silu mish sigmoid tanh softplus hardswish hardsigmoid ReLU ReLU6 LeakyReLU ELU GELU SiLU
    Mish Sigmoid Tanh Softplus Hardswish Hardsigmoid
""")
# After them a graph computes in another mode, as after `with torch.no_grad()`.
MODES = _words("_set_grad_enabled _enter_autocast _exit_autocast")
# Whether the result is a part of the input or a copy depends on the input's layout.
MAY_COPY = _words("reshape reshape_as flatten ravel contiguous to view Flatten")
# These fail, or say something else, where memory is laid out in another way.
LAYOUT = _words("""
    as_strided stride storage_offset is_contiguous data_ptr storage untyped_storage set_
    resize_ resize_as_ view_as view_as_complex numpy is_set_to
""")
