// One step of drafting for many requests, in one forward pass: reads tokens that the cache lacks, or the
// most probable nodes of a draft tree, and adds the best continuations. The same as drafter.py and
// draft_tree.py, without Python.

#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "decoder.h"
#include "rank.h"

// Structures and constants from here on are declared in native_structs.py as well.
namespace {

constexpr int kTreeCapacity = 2048;            // nodes of a tree
constexpr int kChildren = 4;                   // draft tokens that are kept after each node
constexpr double kMostNll = 16.0;              // of one token
constexpr int32_t kRoot = -1, kUnread = -1, kNoNode = -1;

}  // namespace

struct Nodes {
  int32_t length, count, num_read, first_of_root;
  int32_t token[kTreeCapacity], parent[kTreeCapacity], depth[kTreeCapacity];
  int32_t kv_position[kTreeCapacity], first[kTreeCapacity];
  double confidence[kTreeCapacity], path_probability[kTreeCapacity], share[kTreeCapacity];
  double share_of_root;
};

struct DraftWork {
  Nodes* nodes;
  const int32_t* seeded;                       // nodes of the verified tree, read first
  const int32_t* pending;                      // the last tokens of the sequence, read before any node
  uint8_t* is_top1;                            // out: whether each scored token was the best one
  uint64_t noise_seed;                         // as `shared_noise.noise_seed` returns it
  int64_t num_seeded, num_pending, slot, width, room, deepest;
  int64_t num_scored;                          // the last pending tokens that are compared with predictions
  int64_t num_chosen;                          // out: nodes that this step has read
  double nll;                                  // out: sum of -log q over the scored tokens, in nats
  float inverse_temperature;
  int32_t is_noisy;
};

namespace {

inline uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * kFirst;
  x = (x ^ (x >> 27)) * kSecond;
  return x ^ (x >> 31);
}

inline uint64_t noise_key(uint64_t seed, int64_t position) {
  return mix(seed + static_cast<uint64_t>(position) * kGolden);
}

// The nodes to read in this step, by descending probability; equal ones by ascending number.
void choose(const DraftWork& work, std::vector<int32_t>& chosen) {
  const Nodes& n = *work.nodes;
  chosen.clear();
  if (work.num_seeded) {
    chosen.assign(work.seeded, work.seeded + work.num_seeded);
  } else {
    for (int32_t node = 0; node < n.count; node++) {
      const int32_t above = n.parent[node];
      if (n.kv_position[node] == kUnread && (above == kRoot || n.kv_position[above] != kUnread))
        chosen.push_back(node);
    }
    const auto count = std::min<size_t>(chosen.size(), work.width);
    std::partial_sort(chosen.begin(), chosen.begin() + count, chosen.end(), [&](auto a, auto b) {
      const double left = n.path_probability[a], right = n.path_probability[b];
      return left > right || (left == right && a < b);
    });
    chosen.resize(count);
  }
  const auto is_too_deep = [&](int32_t node) { return n.depth[node] >= work.deepest; };
  chosen.erase(std::remove_if(chosen.begin(), chosen.end(), is_too_deep), chosen.end());
  const int64_t left = std::min<int64_t>(work.room - n.num_read, (kTreeCapacity - n.count) / kChildren);
  chosen.resize(std::min<int64_t>(chosen.size(), std::max<int64_t>(0, left)));
}

void add_children(Nodes& n, int32_t parent, const int64_t* tokens, const float* shares, int best) {
  const bool is_root = parent == kRoot;
  int32_t& first = is_root ? n.first_of_root : n.first[parent];
  const double above = is_root ? n.share_of_root : n.path_probability[parent] * n.share[parent];
  for (int b = 0; b < best && n.count < kTreeCapacity; b++) {
    bool is_known = !std::isfinite(shares[b]);  // the logits are NaN or infinite
    for (int32_t node = parent + 1; node < n.count && !is_known; node++)
      is_known = n.parent[node] == parent && n.token[node] == tokens[b];
    if (is_known) continue;
    const int32_t node = n.count++;
    n.token[node] = static_cast<int32_t>(tokens[b]);
    n.parent[node] = parent;
    n.depth[node] = is_root ? 1 : n.depth[parent] + 1;
    n.confidence[node] = shares[b];
    n.path_probability[node] = n.confidence[node] * above;
    n.share[node] = 1.0;
    n.kv_position[node] = kUnread;
    n.first[node] = kNoNode;
    if (first == kNoNode) first = node;
  }
}

// -log q(token) in nats, from 0 to kMostNll, which a token without an output has.
double nll_of(const float* logits, int64_t outputs, const int64_t* shortlist, int32_t token) {
  const int64_t at = shortlist ? std::find(shortlist, shortlist + outputs, token) - shortlist : token;
  if (at >= outputs) return kMostNll;
  const int64_t whole = outputs / kLanes * kLanes;
  Vector mosts = Vector{} - INFINITY, sums{};
  for (int64_t i = 0; i < whole; i += kLanes) {
    const Vector next = load(logits + i);
    mosts = next > mosts ? next : mosts;
  }
  float most = greatest(mosts);
  for (int64_t i = whole; i < outputs; i++) most = std::max(most, logits[i]);
  for (int64_t i = 0; i < whole; i += kLanes) sums += exponential(load(logits + i) - most);
  double sum = total(sums);
  for (int64_t i = whole; i < outputs; i++) sum += std::exp(logits[i] - most);
  return std::min(std::max(0.0, std::log(sum) + most - logits[at]), kMostNll);
}

// The rows of a step, and what their logits are for.
struct Steps {
  struct Use {
    int64_t work;
    int32_t node;                              // whose children they give; kRoot
    int32_t scored;                            // or the pending token that they predict; -1
  };
  std::vector<int32_t> slot, kv_position, length, path, path_length;
  std::vector<int64_t> tokens, positions, keep;
  std::vector<Use> uses;                       // [keep]

  int64_t rows() const { return tokens.size(); }

  void clear() {
    for (auto* column : {&slot, &kv_position, &length, &path, &path_length}) column->clear();
    for (auto* column : {&tokens, &positions, &keep}) column->clear();
    uses.clear();
  }

  void add(int64_t in_slot, int32_t token, int64_t position, int32_t at, int32_t seen, int32_t depth) {
    slot.push_back(static_cast<int32_t>(in_slot));
    tokens.push_back(token);
    positions.push_back(position);
    kv_position.push_back(at);
    length.push_back(seen);
    path_length.push_back(depth);
  }

  void use(Use how) {
    keep.push_back(rows() - 1);
    uses.push_back(how);
  }

  void add_pending(const DraftWork& work, int64_t number) {
    const int32_t count = static_cast<int32_t>(work.num_pending), start = work.nodes->length - count;
    for (int32_t i = 0; i < count; i++) {
      add(work.slot, work.pending[i], start + i, start + i, start + i + 1, 0);
      if (i + 1 == count)
        use({number, kRoot, -1});
      else if (i + 1 >= count - work.num_scored)
        use({number, kRoot, i + 1});
    }
  }

  void add_nodes(const DraftWork& work, int64_t number, const std::vector<int32_t>& chosen) {
    Nodes& n = *work.nodes;
    for (const int32_t node : chosen) {
      n.kv_position[node] = n.length + n.num_read++;
      add(work.slot, n.token[node], n.length + n.depth[node] - 1, n.kv_position[node], n.length,
          n.depth[node]);
      use({number, node, -1});
    }
  }

  // Writes the paths of nodes, in rows of the longest one, whose length is returned.
  int64_t write_paths(const DraftWork* works) {
    const int64_t longest = std::max(1, *std::max_element(path_length.begin(), path_length.end()));
    path.assign(rows() * longest, 0);
    for (size_t k = 0; k < uses.size(); k++) {
      const Nodes& n = *works[uses[k].work].nodes;
      int32_t at = uses[k].node;
      for (int32_t i = path_length[keep[k]] - 1; i >= 0; i--, at = n.parent[at])
        path[keep[k] * longest + i] = n.kv_position[at];
    }
    return longest;
  }
};

// Reads tokens or nodes of all works in one forward pass; returns its rows, or -1 where they do not fit.
int64_t draft_step(const Decoder& decoder, DraftWork* works, int64_t count) {
  thread_local Steps steps;
  thread_local std::vector<int32_t> chosen;
  thread_local std::vector<float> logits;
  steps.clear();
  for (int64_t w = 0; w < count; w++) {
    works[w].num_chosen = 0;
    works[w].nll = 0;
    if (works[w].num_pending) {
      steps.add_pending(works[w], w);
      continue;
    }
    choose(works[w], chosen);
    works[w].num_chosen = chosen.size();
    steps.add_nodes(works[w], w, chosen);
  }
  const int64_t rows = steps.rows(), keeps = steps.keep.size(), outputs = decoder.head.outputs;
  if (!rows) return 0;
  const int64_t longest = steps.write_paths(works);
  logits.resize(keeps * outputs);
  const Batch batch{steps.slot.data(), steps.kv_position.data(), steps.length.data(), steps.path.data(),
                    steps.path_length.data(), longest, rows};
  if (!decode(decoder, steps.tokens.data(), steps.positions.data(), batch, steps.keep.data(), keeps,
              logits.data()))
    return -1;
  for (int64_t k = 0; k < keeps; k++) {
    const auto& [number, node, scored] = steps.uses[k];
    DraftWork& work = works[number];
    const bool is_scored = scored >= 0;
    const int64_t best = is_scored ? 1 : std::min<int64_t>(kChildren, outputs);
    int64_t tokens[kChildren];
    float shares[kChildren];
    rank(&logits[k * outputs], outputs, decoder.shortlist, work.inverse_temperature, work.is_noisy,
         noise_key(work.noise_seed, steps.positions[steps.keep[k]] + 1), best, tokens, shares);
    if (!is_scored) {
      add_children(*work.nodes, node, tokens, shares, static_cast<int>(best));
      continue;
    }
    const int32_t truth = work.pending[scored];
    work.is_top1[scored - (work.num_pending - work.num_scored)] = tokens[0] == truth;
    work.nll += nll_of(&logits[k * outputs], outputs, decoder.shortlist, truth);
  }
  return rows;
}

}  // namespace
