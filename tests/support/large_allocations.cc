// Tests copy images of many MiB all the time. In pages of 4 KiB, the kernel spends more on mapping
// those than the tests on their contents: what is large gets huge pages where madvise(2) gives
// them.
//
// Part of each test program, not of test_support: nobody calls it, so a library's would be left
// out.
#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <new>

#if !defined(__SANITIZE_THREAD__)  // runs none of those tests

namespace {

constexpr size_t kLarge = size_t{4} << 20;
constexpr uintptr_t kPage = 4096;

void advise(const volatile void* memory, size_t size) {
    if (memory == nullptr || size < kLarge) return;
    const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + kPage - 1) & ~(kPage - 1);
    const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + size) & ~(kPage - 1);
    // Advice: without it everything works, only slower.
    (void)::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
}

}  // namespace

#if defined(__SANITIZE_ADDRESS__)

// The sanitizer's own new and delete stay, with what they check. (g++ has no header for this.)
extern "C" int __sanitizer_install_malloc_and_free_hooks(void (*malloc_hook)(const volatile void*,
                                                                             size_t),
                                                         void (*free_hook)(const volatile void*));

static const int installed =
    __sanitizer_install_malloc_and_free_hooks(advise, [](const volatile void*) {});

#else

// The standard library's other forms (arrays, nothrow, sized) call these.
void* operator new(size_t size) {
    void* memory = std::malloc(size > 0 ? size : 1);
    if (memory == nullptr) throw std::bad_alloc();
    advise(memory, size);
    return memory;
}
void operator delete(void* memory) noexcept {
    std::free(memory);
}
void operator delete(void* memory, size_t) noexcept {
    std::free(memory);
}

#endif

#endif
