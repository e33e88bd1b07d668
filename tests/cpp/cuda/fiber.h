// A fiber: a thread of execution that an OS thread runs until it switches to another one. The sanitizers are told, so
// that AddressSanitizer knows each stack and ThreadSanitizer takes each fiber for a thread. Switched by hand, because
// swapcontext makes two system calls and one run of the tests switches some fifty million times. A fiber that began
// stays for good.
#pragma once

#include <cstddef>

namespace emulator {

class Fiber {
 public:
  Fiber();                          // what runs now
  explicit Fiber(void (*entry)());  // begins with entry, which must not return
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // From this one, which must be what runs, to another; returns when somebody switches back.
  void switch_to(const Fiber& other);
  static void entered();  // the first thing that entry calls

 private:
  void* context_ = nullptr;     // the stack pointer where it goes on
  void* stack_ = nullptr;       // the lowest address of its stack
  size_t size_ = 0;             // of the stack, in bytes
  void* thread_ = nullptr;      // as ThreadSanitizer knows it
  void* fake_stack_ = nullptr;  // AddressSanitizer's, while others run
};

}  // namespace emulator
