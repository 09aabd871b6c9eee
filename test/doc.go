// Package test holds the tests of the whole system: images that bin/kiln has
// composed are booted in QEMU, judged by programs that are not part of kiln, and
// composed again under conditions that must not matter.
//
// 'make test' builds what they need and says where it is in the environment:
//
//	KILN_BIN              the command kiln
//	KILN_BASE             a base without containerd, whose small images start quickly
//	KILN_BASE_CONTAINERS  the base as people use it
//	KILN_EXTENSION        an extension of both that loads the module wireguard
//	KILN_IMAGE            profile metal with KILN_BASE and the extension
//	KILN_IMAGE_4K         profile metal-4k with the same
//	KILN_TEST_XEN         Debian packages of a Xen host
//
// and KILN_BASE_ARM64 and KILN_EXTENSION_ARM64, the same for arm64. Without that the
// tests are skipped, and say so. So are those that take long, unless KILN_TEST_FULL
// is set, as 'make test-full' does.
package test
