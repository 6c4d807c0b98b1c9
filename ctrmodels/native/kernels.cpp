// The steps of a training that no operation of torch does in one pass over memory. All run on a CPU, in float32
// unless said otherwise, and give the same bits whatever the number of threads, which never decides how a sum is split.
//
// Notation: n look-ups, U distinct rows among them, V rows of a table, D width, B rows of a batch, F fields.

#include <torch/library.h>

#include "gated.h"
#include "groups.h"
#include "id_spaces.h"
#include "interactions.h"
#include "layers.h"
#include "look_ups.h"
#include "mixtures.h"
#include "optimisers.h"
#include "projections.h"
#include "relaxations.h"
#include "widths.h"

TORCH_LIBRARY(ctrmodels, m) {
  m.def("group(Tensor index, int fields) -> (Tensor rows, Tensor order, Tensor begins)");
  m.def("places(Tensor order, Tensor begins) -> Tensor");
  m.def("rising(Tensor rows) -> bool");
  m.def("gather(Tensor table, Tensor index) -> Tensor");
  m.def("gather_rows(Tensor[] tables, Tensor rows) -> Tensor[]");
  m.def("field_sums(Tensor table, Tensor index, int fields) -> Tensor");
  m.def("field_sums_backward(Tensor gradient, Tensor order, Tensor begins, int fields) -> Tensor");
  m.def("rowwise_adagrad(Tensor(a!) table, Tensor(b!) sums, Tensor rows, Tensor gradient, float rate, float eps) -> ()");
  m.def("descend(Tensor(a!) table, Tensor rows, Tensor gradient, float rate) -> ()");
  m.def(
      "lazy_adam(Tensor(a!) table, Tensor(b!) first, Tensor(c!) second, Tensor rows, Tensor gradient, float rate, "
      "float beta1, float beta2, float eps, int step) -> ()");
  m.def(
      "coupled_adam(Tensor(a!) table, Tensor(b!) first, Tensor(c!) second, Tensor(d!) last, Tensor rows, Tensor? gradient, "
      "float rate, float beta1, float beta2, float eps, float decay, int step) -> ()");
  m.def(
      "row_norm(Tensor x, Tensor begins, int n, Tensor cuts, Tensor scale, float eps) -> (Tensor result, Tensor mean, "
      "Tensor variance, Tensor looked_up)");
  m.def(
      "row_norm_backward(Tensor gradient, Tensor x, Tensor begins, int n, Tensor cuts, Tensor scale, Tensor mean, "
      "Tensor variance, Tensor looked_up, float eps) -> (Tensor of_x, Tensor of_scale)");
  m.def("soften(Tensor table, Tensor thresholds, Tensor rows) -> (Tensor result, Tensor level)");
  m.def(
      "soften_late(Tensor table, Tensor(a!) thresholds, Tensor(b!) first, Tensor(c!) second, Tensor(d!) last, Tensor rows, "
      "float rate, float beta1, float beta2, float eps, float decay, int step) -> (Tensor result, Tensor level)");
  m.def("gate(Tensor x, Tensor accumulators, Tensor rows, float level) -> (Tensor result, Tensor gates)");
  m.def(
      "widen(Tensor table, Tensor rows, Tensor begins, int n, Tensor cuts, Tensor takes, Tensor maps, int[] widths) -> "
      "(Tensor x, Tensor wide, Tensor mean, Tensor variance, Tensor looked_up)");
  m.def(
      "blend(Tensor x, Tensor wide, Tensor cuts, Tensor takes, Tensor mean, Tensor variance, Tensor weights, "
      "float eps) -> Tensor");
  m.def(
      "blend_weights_backward(Tensor gradient, Tensor wide, Tensor cuts, Tensor takes, Tensor mean, Tensor "
      "variance, float eps) -> Tensor");
  m.def(
      "widen_backward(Tensor gradient, Tensor x, Tensor wide, Tensor begins, int n, Tensor cuts, Tensor takes, Tensor maps, "
      "int[] widths, Tensor mean, Tensor variance, Tensor looked_up, Tensor weights, float eps) -> (Tensor of_x, Tensor of_maps)");
  m.def("soften_backward(Tensor gradient, Tensor output, Tensor level) -> (Tensor of_rows, Tensor of_level)");
  m.def(
      "soften_flat_backward(Tensor? flat, Tensor? fields_gradient, Tensor? pair_gradient, Tensor output, Tensor total, "
      "Tensor order, Tensor begins, Tensor level) -> (Tensor of_rows, Tensor of_level)");
  m.def("flatten(Tensor fields, Tensor numeric, int width, bool pairs, bool bf16) -> (Tensor flat, Tensor pair_sum, Tensor total)");
  m.def("flatten_backward(Tensor flat_gradient, Tensor pair_gradient, Tensor fields, Tensor total) -> Tensor");
  m.def("dot(Tensor x, Tensor weight, Tensor bias) -> Tensor");
  m.def("dot_backward(Tensor gradient, Tensor x, Tensor weight) -> (Tensor result, Tensor sums)");
  m.def(
      "gather_flat(Tensor table, Tensor index, Tensor numeric, int width, bool pairs, bool bf16, bool asked) -> (Tensor "
      "fields, Tensor flat, Tensor pair_sum, Tensor total)");
  m.def(
      "gather_flat_backward(Tensor? flat, Tensor? fields_gradient, Tensor? pair_gradient, Tensor x, Tensor total, "
      "Tensor order, Tensor begins) -> Tensor");
  m.def("dot_relu_backward(Tensor gradient, Tensor x, Tensor weight) -> (Tensor result, Tensor sums, Tensor bias)");
  m.def("relu_backward(Tensor gradient, Tensor output, Tensor(a!) result) -> Tensor sums");
  m.def("mix(Tensor z, Tensor bias, int mixtures) -> (Tensor mixed, Tensor gates)");
  m.def("mix_backward(Tensor gradient, Tensor z, Tensor bias, Tensor gates) -> (Tensor of_z, Tensor of_bias)");
  m.def("take(Tensor[] columns, Tensor index) -> Tensor[]");
  m.def("products(Tensor fields, Tensor? places, Tensor? weights, Tensor slots, Tensor(a!) result, int column) -> ()");
  m.def(
      "products_backward(Tensor gradient, int column, Tensor fields, Tensor? places, Tensor? begins, Tensor? weights, Tensor "
      "slots) -> (Tensor of_fields, Tensor of_weights)");
  m.def("project(Tensor x, Tensor onto) -> Tensor");
  m.def("project_backward(Tensor gradient, Tensor x, Tensor onto) -> (Tensor of_x, Tensor of_onto)");
  m.def(
      "gated_products(Tensor fields, Tensor? places, Tensor? weights, Tensor slots, Tensor gates, Tensor eps) -> (Tensor "
      "result, Tensor means, Tensor variances, Tensor kept)");
  m.def(
      "gated_products_backward(Tensor gradient, Tensor fields, Tensor? places, Tensor? begins, Tensor? weights, Tensor slots, "
      "Tensor gates, Tensor eps, Tensor means, Tensor variances, Tensor kept) -> (Tensor of_fields, Tensor of_weights, Tensor "
      "of_gates)");
  m.def(
      "power_sums(Tensor(a!) result, int column, Tensor vectors, Tensor? places, Tensor inside, Tensor? own, int order, float "
      "compensation) -> Tensor own_sums");
  m.def(
      "power_sums_backward(Tensor gradient, int column, Tensor vectors, Tensor? places, Tensor inside, Tensor? own, Tensor? "
      "members, Tensor own_sums, int order, float compensation, bool wants_vectors) -> (Tensor of_vectors, Tensor of_inside, "
      "Tensor of_own)");
}

TORCH_LIBRARY_IMPL(ctrmodels, CPU, m) {
  m.impl("group", group);
  m.impl("places", places);
  m.impl("rising", rising);
  m.impl("gather", gather);
  m.impl("gather_rows", gather_rows);
  m.impl("field_sums", field_sums);
  m.impl("field_sums_backward", field_sums_backward);
  m.impl("rowwise_adagrad", rowwise_adagrad);
  m.impl("descend", descend);
  m.impl("lazy_adam", lazy_adam);
  m.impl("coupled_adam", coupled_adam);
  m.impl("row_norm", row_norm);
  m.impl("row_norm_backward", row_norm_backward);
  m.impl("soften", soften);
  m.impl("soften_late", soften_late);
  m.impl("soften_backward", soften_backward);
  m.impl("soften_flat_backward", soften_flat_backward);
  m.impl("gate", gate);
  m.impl("widen", widen);
  m.impl("blend", blend);
  m.impl("blend_weights_backward", blend_weights_backward);
  m.impl("widen_backward", widen_backward);
  m.impl("flatten", flatten);
  m.impl("flatten_backward", flatten_backward);
  m.impl("dot", dot);
  m.impl("dot_backward", dot_backward);
  m.impl("gather_flat", gather_flat);
  m.impl("gather_flat_backward", gather_flat_backward);
  m.impl("dot_relu_backward", dot_relu_backward);
  m.impl("relu_backward", relu_backward);
  m.impl("mix", mix);
  m.impl("mix_backward", mix_backward);
  m.impl("take", take);
  m.impl("products", products);
  m.impl("products_backward", products_backward);
  m.impl("project", project);
  m.impl("project_backward", project_backward);
  m.impl("gated_products", gated_products);
  m.impl("gated_products_backward", gated_products_backward);
  m.impl("power_sums", power_sums);
  m.impl("power_sums_backward", power_sums_backward);
}
