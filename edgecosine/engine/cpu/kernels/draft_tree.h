// One step of drafting for many requests: chooses the most probable nodes of each draft tree, runs them
// in one forward pass and adds their best continuations. The same as draft_tree.py, without Python.

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
  uint64_t noise_seed;                         // as `shared_noise.noise_seed` returns it
  int64_t num_seeded, slot, width, room, deepest;
  int64_t num_chosen;                          // out: nodes that this step has read
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
  for (int b = 0; b < best; b++) {
    bool is_known = !std::isfinite(shares[b]);  // the logits are NaN or infinite
    for (int32_t node = parent + 1; node < n.count && !is_known; node++)
      is_known = n.parent[node] == parent && n.token[node] == tokens[b];
    if (is_known) continue;
    const int32_t node = n.count++;
    n.token[node] = static_cast<int32_t>(tokens[b]);
    n.parent[node] = parent;
    n.depth[node] = n.depth[parent] + 1;
    n.confidence[node] = shares[b];
    n.path_probability[node] = n.confidence[node] * (n.path_probability[parent] * n.share[parent]);
    n.share[node] = 1.0;
    n.kv_position[node] = kUnread;
    n.first[node] = kNoNode;
    if (n.first[parent] == kNoNode) n.first[parent] = node;
  }
}

// Reads nodes of all works in one forward pass; returns its rows, or -1 where they do not fit.
int64_t draft_step(const Decoder& decoder, DraftWork* works, int64_t count) {
  thread_local std::vector<int32_t> chosen, nodes, slot, kv_position, length, path, path_length;
  thread_local std::vector<int64_t> owner, tokens, positions, keep;
  thread_local std::vector<float> logits;
  for (auto* column : {&nodes, &slot, &kv_position, &length, &path_length}) column->clear();
  for (auto* column : {&owner, &tokens, &positions, &keep}) column->clear();
  int64_t deepest = 1;
  for (int64_t w = 0; w < count; w++) {
    DraftWork& work = works[w];
    Nodes& n = *work.nodes;
    choose(work, chosen);
    work.num_chosen = chosen.size();
    for (const int32_t node : chosen) {
      n.kv_position[node] = n.length + n.num_read++;
      keep.push_back(owner.size());
      owner.push_back(w);
      nodes.push_back(node);
      tokens.push_back(n.token[node]);
      positions.push_back(n.length + n.depth[node] - 1);
      slot.push_back(work.slot);
      kv_position.push_back(n.kv_position[node]);
      length.push_back(n.length);
      path_length.push_back(n.depth[node]);
      deepest = std::max<int64_t>(deepest, n.depth[node]);
    }
  }
  const int64_t rows = owner.size();
  if (!rows) return 0;
  path.assign(rows * deepest, 0);
  for (int64_t r = 0; r < rows; r++) {
    const Nodes& n = *works[owner[r]].nodes;
    int32_t at = nodes[r];
    for (int32_t i = path_length[r] - 1; i >= 0; i--, at = n.parent[at])
      path[r * deepest + i] = n.kv_position[at];
  }
  const int64_t outputs = decoder.head.outputs;
  logits.resize(rows * outputs);
  const Batch batch{slot.data(), kv_position.data(), length.data(), path.data(), path_length.data(),
                    deepest,     rows};
  if (!decode(decoder, tokens.data(), positions.data(), batch, keep.data(), rows, logits.data()))
    return -1;
  const int best = static_cast<int>(std::min<int64_t>(kChildren, outputs));
  for (int64_t r = 0; r < rows; r++) {
    const DraftWork& work = works[owner[r]];
    int64_t best_tokens[kChildren];
    float shares[kChildren];
    rank(&logits[r * outputs], outputs, decoder.shortlist, work.inverse_temperature, work.is_noisy,
         noise_key(work.noise_seed, positions[r] + 1), best, best_tokens, shares);
    add_children(*work.nodes, nodes[r], best_tokens, shares, best);
  }
  return rows;
}

}  // namespace
