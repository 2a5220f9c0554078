// Runs the kernels of csrc/cuda on the CPU, thread block after thread block.
//
// Stricter than a GPU: a barrier that a thread does not reach is an error, and threads and blocks
// run in any order asked for, so that results which depend on the order show.

#include "language.h"

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "../../csrc/cuda/kernels.cuh"

Dimension threadIdx, blockIdx, gridDim;

namespace {

using gsdist::kThreads;
using gsdist::kWarp;

constexpr std::size_t kStack = 64 * 1024;

enum class State { kReady, kAtBarrier, kAtBallot, kDone };

struct Fiber {
  ucontext_t start;
  jmp_buf resume;
  std::unique_ptr<char[]> stack{new char[kStack]};
  bool started = false;
  State state = State::kDone;
  bool vote = false;
  uint32_t ballot = 0;
};

class ThreadBlock {
 public:
  static ThreadBlock& instance() {
    static ThreadBlock block;
    return block;
  }

  void run(const std::function<void()>& kernel, const std::vector<uint32_t>& order) {
    kernel_ = &kernel;
    for (Fiber& fiber : fibers_) fiber.state = State::kReady;
    while (resume_ready(order)) {
      release_ballots();
      release_barrier();
    }
    for (const Fiber& fiber : fibers_) {
      if (fiber.state != State::kDone) {
        for (Fiber& each : fibers_) each.started = false;
        throw std::runtime_error("some threads wait at a barrier or ballot that others passed by");
      }
    }
  }

  void wait(State state) {
    Fiber& fiber = fibers_[threadIdx.x];
    fiber.state = state;
    // Not swapcontext, which asks the kernel for the signal mask every time.
    if (_setjmp(fiber.resume) == 0) _longjmp(scheduler_, 1);
  }

  uint32_t ballot(bool vote) {
    fibers_[threadIdx.x].vote = vote;
    wait(State::kAtBallot);
    return fibers_[threadIdx.x].ballot;
  }

 private:
  static void enter() {
    ThreadBlock& block = instance();
    for (;;) {
      (*block.kernel_)();
      block.wait(State::kDone);
    }
  }

  static void start(Fiber& fiber) {
    fiber.started = true;
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = fiber.stack.get();
    fiber.start.uc_stack.ss_size = kStack;
    makecontext(&fiber.start, &ThreadBlock::enter, 0);
    setcontext(&fiber.start);
  }

  void resume(Fiber& fiber) {
    if (_setjmp(scheduler_) != 0) return;
    if (fiber.started) _longjmp(fiber.resume, 1);
    start(fiber);
  }

  bool resume_ready(const std::vector<uint32_t>& order) {
    bool any = false;
    for (const uint32_t thread : order) {
      if (fibers_[thread].state != State::kReady) continue;
      any = true;
      threadIdx.x = thread;
      resume(fibers_[thread]);
    }
    return any;
  }

  bool all_in(State state, uint32_t begin, uint32_t end) const {
    return std::all_of(fibers_.begin() + begin, fibers_.begin() + end,
                       [=](const Fiber& fiber) { return fiber.state == state; });
  }

  void release_barrier() {
    if (!all_in(State::kAtBarrier, 0, kThreads)) return;
    for (Fiber& fiber : fibers_) fiber.state = State::kReady;
  }

  void release_ballots() {
    for (uint32_t warp = 0; warp < kThreads; warp += kWarp) {
      if (!all_in(State::kAtBallot, warp, warp + kWarp)) continue;
      uint32_t votes = 0;
      for (uint32_t lane = 0; lane < kWarp; ++lane) {
        votes |= static_cast<uint32_t>(fibers_[warp + lane].vote) << lane;
      }
      for (uint32_t lane = 0; lane < kWarp; ++lane) {
        fibers_[warp + lane].ballot = votes;
        fibers_[warp + lane].state = State::kReady;
      }
    }
  }

  std::vector<Fiber> fibers_ = std::vector<Fiber>(kThreads);
  jmp_buf scheduler_;
  const std::function<void()>* kernel_ = nullptr;
};

template <class T>
T from_word(uint64_t word) {
  static_assert(sizeof(T) <= sizeof word, "an argument is one word");
  T value;
  std::memcpy(&value, &word, sizeof value);
  return value;
}

template <class... T, std::size_t... I>
std::function<void()> bind_words(void (*kernel)(T...), const uint64_t* words,
                                 std::index_sequence<I...>) {
  return [=] { kernel(from_word<T>(words[I])...); };
}

template <class... T>
std::function<void()> bind_arguments(void (*kernel)(T...), const uint64_t* words, uint64_t count) {
  if (count != sizeof...(T)) {
    throw std::invalid_argument("it takes " + std::to_string(sizeof...(T)) + " arguments, not " +
                                std::to_string(count));
  }
  return bind_words(kernel, words, std::index_sequence_for<T...>());
}

std::function<void()> find_kernel(const std::string& name, const uint64_t* words, uint64_t count) {
#define GSDIST_FIND(kernel) \
  if (name == #kernel) return bind_arguments(&gsdist::gsdist_##kernel, words, count);
  GSDIST_FOR_KERNELS(GSDIST_FIND)
#undef GSDIST_FIND
  throw std::invalid_argument("there is no kernel of this name");
}

template <class T>
std::vector<T> shuffled(T begin, T end, uint64_t shuffle) {
  std::vector<T> order(end - begin);
  std::iota(order.begin(), order.end(), begin);
  if (shuffle != 0) std::shuffle(order.begin(), order.end(), std::mt19937_64(shuffle));
  return order;
}

}  // namespace

void __syncthreads() { ThreadBlock::instance().wait(State::kAtBarrier); }

uint32_t __ballot_sync(uint32_t, bool vote) { return ThreadBlock::instance().ballot(vote); }

// Runs the thread blocks begin..end-1 of a grid: in ascending order with shuffle 0, else in an
// order of this number. Returns null, or what went wrong.
extern "C" const char* launch(const char* name, uint64_t grid, uint64_t begin, uint64_t end,
                              uint64_t shuffle, const uint64_t* words, uint64_t count) {
  static std::string error;
  try {
    const std::function<void()> kernel = find_kernel(name, words, count);
    const std::vector<uint32_t> threads = shuffled<uint32_t>(0, kThreads, shuffle);
    gridDim.x = static_cast<uint32_t>(grid);
    for (const uint64_t block : shuffled<uint64_t>(begin, end, shuffle)) {
      blockIdx.x = static_cast<uint32_t>(block);
      ThreadBlock::instance().run(kernel, threads);
    }
    return nullptr;
  } catch (const std::exception& problem) {
    error = std::string("kernel ") + name + ": " + problem.what();
    return error.c_str();
  }
}
