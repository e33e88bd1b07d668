#include "fiber.h"

#include <pthread.h>
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>

// This file is compiled without sanitizers, and says by definitions which one the rest has.
#ifdef EMULATOR_TSAN
#include <sanitizer/tsan_interface.h>
#else
#define __tsan_get_current_fiber() nullptr
#define __tsan_create_fiber(flags) nullptr
#define __tsan_switch_to_fiber(fiber, flags)
#endif
#ifdef EMULATOR_ASAN
#include <sanitizer/common_interface_defs.h>
#else
#define __sanitizer_start_switch_fiber(save, stack, size)
#define __sanitizer_finish_switch_fiber(saved, stack, size)
#endif

#ifndef __x86_64__
#error "emulator_switch is written for x86-64"
#endif

// Saves on the stack what a call preserves, stores the stack pointer in `from` and goes on where `to` was saved.
extern "C" void emulator_switch(void** from, void* to);
asm(R"(.text
.globl emulator_switch
emulator_switch:
  push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp
  ret
)");

namespace emulator {
namespace {

constexpr size_t kStack = 128 << 10;
constexpr int kSavedRegisters = 6;

}  // namespace

Fiber::Fiber() : thread_(__tsan_get_current_fiber()) {
  pthread_attr_t attributes;
  pthread_getattr_np(pthread_self(), &attributes);
  pthread_attr_getstack(&attributes, &stack_, &size_);
  pthread_attr_destroy(&attributes);
}

Fiber::Fiber(void (*entry)()) : size_(kStack), thread_(__tsan_create_fiber(0)) {
  stack_ = mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (stack_ == MAP_FAILED) {
    std::perror("emulator: a stack");
    std::abort();
  }
  // As if entry had been called from nowhere and had then called emulator_switch: the stack is aligned as after a call.
  void** top = reinterpret_cast<void**>(static_cast<char*>(stack_) + kStack) - 1;
  *--top = reinterpret_cast<void*>(entry);
  context_ = top - kSavedRegisters;
}

void Fiber::switch_to(const Fiber& other) {
  __tsan_switch_to_fiber(other.thread_, __tsan_switch_to_fiber_no_sync);
  __sanitizer_start_switch_fiber(&fake_stack_, other.stack_, other.size_);
  emulator_switch(&context_, other.context_);
  __sanitizer_finish_switch_fiber(fake_stack_, nullptr, nullptr);
}

void Fiber::entered() { __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr); }

}  // namespace emulator
