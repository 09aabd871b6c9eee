//go:build linux

package test

import (
	"path/filepath"
	"strings"
	"testing"
)

// An extension of programs and files, which a recipe describes.
func TestExtensionFromRecipe(t *testing.T) {
	b := newBench(t)
	const head = "version: v1alpha1\nname: hello\n"
	recipe := func(text string) string { return b.file(t, "recipe.yaml", []byte(head+text)) }
	build := func(recipe, output string) []string {
		return []string{"extension", "build", "--recipe", recipe, "--base", b.base, "--name", "hello", "--version", "1.2", "--output", output}
	}
	const file = "files: [{path: /usr/share/hello/greeting, mode: \"0600\", content: \"version ${VERSION}\\n\"}]\n"
	good := recipe(file + "symlinks: [{path: /usr/bin/hello, target: init}]\n")
	out := filepath.Join(t.TempDir(), "hello")
	for range 2 {
		run(t, b.kiln, append(build(good, out), "--progress", "none", "--cache", t.TempDir())...)
	}
	said := run(t, b.kiln, "extension", "inspect", out, "--progress", "none")
	for _, want := range []string{"hello", "1.2", "usr/share", "1 symbolic links"} {
		if !strings.Contains(said, want) {
			t.Errorf("kiln extension inspect does not say %s:\n%s", want, said)
		}
	}
	// Without modules it is for any kernel.
	if release, _ := expect(t); strings.Contains(said, release) {
		t.Errorf("it is for the kernel %s:\n%s", release, said)
	}
	run(t, b.kiln, "extension", "check", out, "--base", b.base, "--progress", "none")

	fail := filepath.Join(b.dir, "fail")
	b.fails(t, refused, []string{"usr/lib/os-release", "the base"}, build(recipe("files: [{path: /usr/lib/os-release, content: x}]\n"), fail)...)
	b.fails(t, refused, []string{"etc/x", "an extension may only have files in"}, build(recipe("files: [{path: /etc/x, content: x}]\n"), fail)...)
	b.fails(t, refused, []string{"limits.squashfs", "/usr/share/hello 0.0 MB"}, build(recipe(file+"limits: {squashfs: 100}\n"), fail)...)
	b.fails(t, notFound, []string{"none.yaml"}, build("none.yaml", fail)...)
	b.fails(t, usage, []string{"--recipe"}, "extension", "build", "--base", b.base, "--output", fail)
}
