package extensions

import (
	"errors"
	"path"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// What a node would not start is refused when the image is built.
func TestServices(t *testing.T) {
	const good = "name: hello\ncontainer: {entrypoint: ./hello}\n"
	for _, c := range []struct{ text, root, want string }{
		{good, "hello", ""},
		{"name: hello\ncontainer: {entrypoint: /usr/bin/init}\nrunnerMode: host\n", "other", ""},
		{good, "other", "rootfs/usr/local/etc/containers/hello.yaml: service hello has no root file system, want a directory rootfs/usr/local/lib/containers/hello"},
		{good + "restart: maybe\n", "hello", `rootfs/usr/local/etc/containers/hello.yaml:3:10: restart: unknown value "maybe"`},
		{strings.Repeat("#", maxService+1), "hello", "65537 bytes, want at most 65536"},
	} {
		tr := tree.New()
		for name, data := range map[string]string{
			"manifest.yaml": "version: v1alpha1\nmetadata: {name: a, version: 1.0.0}\n", "rootfs/usr/local/etc/containers/hello.yaml": c.text,
			"rootfs/usr/local/etc/containers/README": "no service", "rootfs/usr/local/lib/containers/" + c.root + "/hello": "program",
		} {
			if err := tr.MkdirAll(path.Dir(name), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := tr.Add(name, &tree.Inode{Mode: 0o644, Content: extent.Bytes([]byte(data))}); err != nil {
				t.Fatal(err)
			}
		}
		_, err := FromTree("x", tr)
		if c.want == "" && err != nil || c.want != "" && (!errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%q: %v, want %q", c.text[:min(len(c.text), 80)], err, c.want)
		}
	}
}
