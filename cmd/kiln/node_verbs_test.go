package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/rand"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/machine/api/selfsigned"
	"github.com/kilnhq/kiln/machine/control"
)

func TestNodeDocuments(t *testing.T) {
	c := newCluster(t, "one", "two")
	out, _, err := c.run(t, "version", "--json")
	var docs []struct{ Node, Hostname, Error string }
	if err != nil || json.Unmarshal([]byte(out), &docs) != nil || len(docs) != 2 || docs[1].Hostname != "two" || docs[1].Node != c.addresses[1] {
		t.Errorf("%s, %v", out, err)
	}
	out, _, err = c.run(t, "services", "-o", "yaml", "-n", c.addresses[0])
	if err != nil || !strings.Contains(out, "name: containerd") || !strings.Contains(out, "pid: 7") {
		t.Errorf("%s, %v", out, err)
	}
	out, _, err = c.run(t, "extensions", "-o", "json", "-n", c.addresses[0])
	if err == nil || !strings.Contains(out, `"error": "`+c.addresses[0]+`: this node cannot do that"`) {
		t.Errorf("%s, %v", out, err)
	}
	out, _, err = c.run(t, "logs", "x", "-o", "json", "-n", c.addresses[0])
	if n := strings.Count(out, "\n"); err != nil || n != 3 || !json.Valid([]byte(out[:strings.IndexByte(out, '\n')])) {
		t.Errorf("%s, %v", out, err)
	}
	// What the server finds out itself.
	for _, verb := range []string{"ps", "memory", "mounts", "disks", "stats"} {
		out, _, err := c.run(t, verb, "-n", c.addresses[0])
		if err != nil || strings.Count(out, "\n") < 1 {
			t.Errorf("%s: %s, %v", verb, out, err)
		}
	}
}

func TestNodeErrors(t *testing.T) {
	c := newCluster(t, "one", "two")
	first, second := c.addresses[0], c.addresses[1]
	role := `: the certificate of "alice" has the role kiln:reader, want kiln:operator; use a context with that role (--context), or have one made (kiln config client)`
	c.fails(t, "NODE0"+role, 1, "reboot", "--context", "reader", "-n", first)
	c.fails(t, `NODE0: there is no service "x", want containerd: file does not exist`+"\n"+`NODE1: there is no service "x", want containerd: file does not exist`, 3, "service", "stop", "x")
	c.fails(t, "the context has 2 nodes; say with --nodes which: NODE0,NODE1", 2, "reboot")
	c.fails(t, "this is for one node at a time, want one with --nodes, got 2", 2, "kubeconfig")
	c.fails(t, "--endpoint leads to one node, want one of NODE0, NODE1 with --nodes", 2, "version", "--endpoint", first)
	c.fails(t, `--output "xml", want table, json or yaml`, 2, "version", "-o", "xml")
	c.fails(t, `there is no context "amdin"; did you mean "admin"?`, 2, "version", "--context", "amdin")
	c.fails(t, "nothing to erase, want --state, --ephemeral or both", 2, "reset", "-n", first)
	c.fails(t, "localhost: its certificate is for other names: x509: certificate is valid for two, not localhost; use one of them, and --endpoint if that does not lead there", 1,
		"version", "-n", "localhost", "--endpoint", second)
	c.fails(t, "127.0.0.1:1: nothing listens there: the API is not up, or it is no node", 1, "version", "-n", "127.0.0.1:1")
	c.fails(t, "NODE0: the node asks for a client certificate: it has its configuration already; use a context instead of --insecure", 1,
		"version", "--insecure", "--fingerprint", c.fingerprint(t, first), "-n", first)
	other := newCluster(t, "other")
	c.contexts = other.contexts
	c.fails(t, "NODE0: its certificate is not from the CA of the context; use the context that was made with its configuration, or, if it has none yet, --insecure", 1, "version", "-n", first)
	c.contexts = filepath.Join(t.TempDir(), "none")
	c.fails(t, "open "+c.contexts+": no such file or directory; 'kiln config generate' makes one (client.yaml), and --contexts or KILN_NODES names another", 3, "version")
}

// fingerprint is what a node without --fingerprint is said to have.
func (c *cluster) fingerprint(t *testing.T, node string) string {
	t.Helper()
	_, _, err := c.run(t, "version", "--insecure", "-n", node)
	if err == nil {
		t.Fatal("a connection without a fingerprint")
	}
	_, rest, ok := strings.Cut(err.Error(), "has the fingerprint ")
	if !ok {
		t.Fatal(err)
	}
	f, _, _ := strings.Cut(rest, ";")
	return f
}

func TestNodeConfigAndFiles(t *testing.T) {
	c := newCluster(t, "one")
	c.want(t, "key: hunter2", "config", "get")
	c.want(t, "key: (secret)", "config", "get", "--context", "reader")
	document, _, err := c.run(t, "config", "get", "-o", "json")
	if err != nil || !strings.Contains(document, `"config": "key: hunter2\n"`) || !strings.Contains(document, `"redacted": false`) {
		t.Errorf("%s, %v", document, err)
	}
	file := filepath.Join(t.TempDir(), "machine.yaml")
	if err := os.WriteFile(file, []byte("a: 2"), 0o600); err != nil {
		t.Fatal(err)
	}
	c.want(t, "RESULT\n-a: 1\n+a: 2\nvalid; nothing was changed; it would take effect with the next start", "config", "apply", "--dry-run", file)
	c.want(t, "KEY NAME VALUE\n0x06 upgrade A\n0x10 machine-token (secret)", "meta", "list", "--context", "reader")
	c.want(t, "A", "meta", "get", "upgrade", "--context", "reader")
	c.want(t, "hunter2", "meta", "get", "0x10")
	c.fails(t, "NODE0: the value of 0x10 (machine-token) is for the role kiln:admin: permission denied", 1, "meta", "get", "machine-token", "--context", "reader")
	c.fails(t, "NODE0: there is no value of 0x0c (user-1): file does not exist", 3, "meta", "get", "user-1")
	c.want(t, "as root", "read", "/etc/shadow")
	c.fails(t, "NODE0: open /proc/kcore: permission denied; what is closed to other users takes the role kiln:admin", 1, "read", "/proc/kcore", "--context", "reader")
	c.want(t, "127.0.0.1: restarts", "reboot", "-n", "127.0.0.1", "--endpoint", c.addresses[0], "--context", "operator")
	if got, want := c.nodes[0].done(), "alice (kiln:admin): config a: 2 dry true\nalice (kiln:admin): read /etc/shadow\nalice (kiln:operator): reboot"; got != want {
		t.Errorf("the node did %q, want %q", got, want)
	}
	out, _, err := c.run(t, "ls", "/proc/self", "--context", "reader")
	if err != nil || !strings.Contains(out, "/status\n") || strings.Contains(out, "/environ\n") {
		t.Errorf("%s, %v", out, err)
	}
}

func TestNodeUpgrade(t *testing.T) {
	c := newCluster(t, "one")
	image := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(image, bytes.Repeat([]byte("kiln"), 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	c.want(t, "NODE0: write, 4.00 MiB\nNODE0: switch: slot B has the new system, and is tried at the next start", "upgrade", "--image", image)
	c.want(t, "NODE0: write\nNODE0: switch: slot B has the new system, and is tried at the next start", "upgrade", "--image", "registry.example.com/kiln:v1", "--no-reboot")
	if got, want := c.nodes[0].done(), "alice (kiln:admin): upgrade  with 4194304 bytes, reboot true\nalice (kiln:admin): upgrade registry.example.com/kiln:v1 with 0 bytes, reboot false"; got != want {
		t.Errorf("the node did %q, want %q", got, want)
	}
	out, _, err := c.run(t, "upgrade", "--image", image, "-o", "json")
	if lines := strings.Split(out, "\n"); err != nil || len(lines) != 3 || !strings.Contains(lines[1], `"slot":"B"`) {
		t.Errorf("%s, %v", out, err)
	}
	dir := t.TempDir()
	c.fails(t, dir+" is a directory, want the file that 'kiln build installer' writes", 2, "upgrade", "--image", dir)
	c.fails(t, "open ./none: file does not exist", 3, "upgrade", "--image", "./none")
}

func TestNodeSupport(t *testing.T) {
	c := newCluster(t, "one", "two")
	file := filepath.Join(t.TempDir(), "support.tar.gz")
	_, note, err := c.run(t, "support", "--file", file, "--context", "reader")
	if err != nil || note != "note: not everything could be had; errors.txt in it says what, and why\n" {
		t.Fatal(note, err)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	content := map[string]string{}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		content[h.Name] = string(data)
	}
	for name, part := range map[string]string{"version.json": "hostname", "processes.json": "pid", "logs/containerd.txt": "one line 2", "errors.txt": "dmesg.txt: rpc error: code = Unimplemented"} {
		if got := content["support/"+c.addresses[0]+"/"+name]; !strings.Contains(got, part) {
			t.Errorf("%s holds %.300q, want %s", name, got, part)
		}
	}
	if _, _, err := c.run(t, "support", "--file", file); exitCode(t.Context(), err) != exitOutput {
		t.Errorf("overwritten: %v", err)
	}
}

// A node that waits for its configuration.
func TestNodeMaintenance(t *testing.T) {
	cert, key, fingerprint, err := selfsigned.New(rand.Reader, "kiln")
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeNode{name: "new"}
	c := &cluster{nodes: []*fakeNode{f}, addresses: []string{startNode(t, f, control.Identity{Maintenance: true, Certificate: cert, Key: key})}}
	node := c.addresses[0]
	file := filepath.Join(t.TempDir(), "machine.yaml")
	if err := os.WriteFile(file, []byte("a: 2"), 0o600); err != nil {
		t.Fatal(err)
	}
	c.fails(t, "NODE0: its certificate has the fingerprint "+fingerprint.String()+"; compare it with the node's console and give it with --fingerprint", 1,
		"config", "apply", "--insecure", "-n", node, file)
	wrong := selfsigned.Of([]byte("x"))
	c.fails(t, "NODE0: its certificate has the fingerprint "+fingerprint.String()+", want "+wrong.String()+": this is another node, somebody is in between, or the node started anew", 1,
		"config", "apply", "--insecure", "-n", node, "--fingerprint", wrong.String(), file)
	if f.done() != "" {
		t.Errorf("the node did %s", f.done())
	}
	c.want(t, "RESULT\n-a: 1\n+a: 2\napplied; it takes effect with the next start (kiln node reboot)", "config", "apply", "--insecure", "-n", node, "--fingerprint", fingerprint.String(), file)
	c.fails(t, "NODE0: the node has no configuration yet; until 'kiln node config apply' gives it one only version and disks can be asked for", 1,
		"services", "--insecure", "-n", node, "--fingerprint", fingerprint.String())
	c.fails(t, `fingerprint "x", want SHA256: and 43 characters of base64, or 64 hexadecimal digits`, 2, "version", "--insecure", "-n", node, "--fingerprint", "x")
}

func TestNodeCompletion(t *testing.T) {
	c := newCluster(t, "one")
	for want, arguments := range map[string][]string{
		"containerd": {"logs", ""},
		"restart":    {"service", ""},
		"operator":   {"version", "--context", ""},
		"yaml":       {"version", "--output", ""},
	} {
		root := newRoot()
		var out bytes.Buffer
		root.SetOut(&out)
		root.SetErr(io.Discard)
		root.SetArgs(append([]string{"__complete", "node", "--contexts", c.contexts}, arguments...))
		if err := root.ExecuteContext(t.Context()); err != nil {
			t.Fatal(err)
		}
		var words []string
		for l := range strings.Lines(out.String()) {
			word, _, _ := strings.Cut(strings.TrimSpace(l), "\t")
			words = append(words, word)
		}
		if !slices.Contains(words, want) {
			t.Errorf("%v completes to %q, want %s too", arguments, words, want)
		}
	}
}
