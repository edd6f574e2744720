"""SavedModels of a global descriptor, as DELG is published, small: the mean of the colours by a matrix."""

import numpy as np
import tensorflow as tf

MATRIX = np.random.default_rng(0).normal(size=(3, 5)).astype("float32")
DELG = {
    "input_image": tf.TensorSpec([None, None, 3], tf.uint8, name="input_image"),
    "input_scales": tf.TensorSpec([None], tf.float32, name="input_scales"),
    "input_global_scales_ind": tf.TensorSpec([None], tf.int32, name="input_global_scales_ind"),
}
LOCAL = {
    "input_max_feature_num": tf.TensorSpec([], tf.int32, name="input_max_feature_num"),
    "input_abs_thres": tf.TensorSpec([], tf.float32, name="input_abs_thres"),
}


def save_delg(folder, more=None, harm=None):
    """As DELG is published: a descriptor a scale, not normalised; here the mean of the colours by a matrix, resized."""
    module = tf.Module()
    module.matrix = tf.Variable(MATRIX)
    signature = {**DELG, **(more or {})}

    def describe(**given):
        size = tf.cast(tf.shape(given["input_image"])[:2], tf.float32)
        scales = tf.gather(given["input_scales"], given["input_global_scales_ind"])

        def of_scale(scale):
            photo = tf.image.resize(given["input_image"], tf.cast(size * scale, tf.int32))
            return tf.linalg.matvec(module.matrix, tf.reduce_mean(photo, [0, 1]), transpose_a=True)

        found = {"global_descriptors": tf.map_fn(of_scale, scales, fn_output_signature=tf.float32)}
        if harm:
            with tf.control_dependencies([harm(found["global_descriptors"])]):
                found = {name: tf.identity(one) for name, one in found.items()}
        return found

    module.describe = tf.function(describe, autograph=False).get_concrete_function(**signature)
    tf.saved_model.save(module, str(folder), signatures=module.describe)
    return folder


def save_tensorflow_1(folder, harm=None, init=None):
    """As TensorFlow 1 has it: the tensors have the names of the arguments, and there may be no signature."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        matrix = tf.compat.v1.get_variable("matrix", initializer=MATRIX)
        photo = tf.compat.v1.placeholder(tf.uint8, [None, None, 3], "input_image")
        tf.compat.v1.placeholder(tf.float32, [None], "input_scales")
        mean = tf.reduce_mean(tf.cast(photo, tf.float32), [0, 1])
        with tf.control_dependencies([harm(mean)] if harm else []):
            tf.identity(tf.linalg.matvec(matrix, mean, transpose_a=True)[None], "global_descriptors")
        main = tf.group(init(mean[0])) if init else None
        session.run(tf.compat.v1.global_variables_initializer())
        builder = tf.compat.v1.saved_model.Builder(str(folder))
        builder.add_meta_graph_and_variables(session, ["serve"], main_op=main)
        builder.save()
    return folder
