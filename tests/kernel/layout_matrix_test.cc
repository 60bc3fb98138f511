// Each supported layout under a mount of this kernel, where it can: what we have written is what
// the kernel reads, and what the kernel then does leaves a volume that we and e2fsck take.
#include "unit/layout_matrix.h"

#include <filesystem>
#include <iostream>

#include "support/command.h"
#include "support/mounted_image.h"
#include "support/privileged.h"

namespace atomic4::test {
namespace {

void store_file(const std::string& path, const Image& bytes) {
    store_image(bytes, path);
    const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    ASSERT_EQ(::fsync(fd.get()), 0);
}

using LayoutMounted = LayoutMatrix;

TEST_P(LayoutMounted, KernelAgrees) {
    A4_REQUIRE_ROOT();
    if (const auto why = why_no_mounts()) A4_SKIP(*why);
    ASSERT_NO_FATAL_FAILURE(format());
    ASSERT_NO_FATAL_FAILURE(live());
    ASSERT_NO_FATAL_FAILURE(crash_and_recover());
    const char* feature = layout().kernel_feature;
    if (layout().kernel_cannot != nullptr && (feature == nullptr || ::access(feature, F_OK) != 0)) {
        // It says so itself, and e2fsck is the only judge.
        std::cout << layout().kernel_cannot << "\n";
        const TempDir dir;
        store_image(memory->contents(), dir.file("image"));
        std::filesystem::create_directory(dir.file("mnt"));
        EXPECT_NE(run_command({"mount", "-o", "loop", dir.file("image"), dir.file("mnt")}).status,
                  0);
        return;
    }
    MountedImage mounted(memory->contents());
    mounted.mount();
    for (const auto& [path, bytes] : expected_)
        EXPECT_TRUE(load_image(mounted.file(path.substr(1))) == bytes) << path;
    // Takes blocks by the kernel's own look at the bitmaps, and writes ours.
    const Image large(uint64_t{3} << 20, std::byte{7});
    store_file(mounted.file("large"), large);
    store_file(mounted.file("plain"), Image(layout().block * 3, std::byte{9}));
    EXPECT_EQ(::truncate(mounted.file(file_of(layout().units.front()).substr(1)).c_str(), 0), 0);
    mounted.unmount();
    const Image after = mounted.load();
    EXPECT_EQ(fsck_complaints(after), "");
    start(after);
    expected_["/large"] = large;
    expected_["/plain"] = Image(layout().block * 3, std::byte{9});
    expected_[file_of(layout().units.front())].clear();
    ASSERT_TRUE(!open());
    expect_contents();
    ASSERT_NO_FATAL_FAILURE(put("/large", 0, layout().units.back()));
    close();
    expect_clean();
}

INSTANTIATE_TEST_SUITE_P(All, LayoutMounted, testing::ValuesIn(layouts()), layout_name);

}  // namespace
}  // namespace atomic4::test
