package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/machine/config"
	"github.com/kilnhq/kiln/machine/config/identity"
)

// runConfig runs 'kiln config' and returns what it writes and its exit code.
func runConfig(t *testing.T, args ...string) (out string, code int, err error) {
	t.Helper()
	c := newConfig()
	var buffer bytes.Buffer
	c.SetOut(&buffer)
	c.SetErr(&buffer)
	c.SilenceErrors, c.SilenceUsage = true, true
	c.SetArgs(args)
	err = c.Execute()
	return buffer.String(), exitCode(context.Background(), err), err
}

func TestConfigGenerate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	out, _, err := runConfig(t, "generate", "--hostname", "node1", "--address", "192.0.2.10", "--install-disk", "/dev/sda", "--output", dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"ca.pem", "machine.yaml", "client.yaml"} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode() != 0o600 || !strings.Contains(out, filepath.Join(dir, name)+"\n") {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	m := parseFile(t, filepath.Join(dir, "machine.yaml"))
	if m.Hostname.Hostname != "node1" || m.Install.Disk != "/dev/sda" || m.API.Names[0] != "192.0.2.10" {
		t.Errorf("machine.yaml has %+v", m)
	}
	if _, code, err := runConfig(t, "generate", "--output", dir); code != exitOutput || !strings.Contains(err.Error(), "is there already; --force replaces it") {
		t.Errorf("again: %d, %v", code, err)
	}
	if again := parseFile(t, filepath.Join(dir, "machine.yaml")); again.API.Issuer.Key.Reveal() != m.API.Issuer.Key.Reveal() {
		t.Error("the refused command has changed files")
	}
	if _, _, err := runConfig(t, "generate", "--output", dir, "--force"); err != nil {
		t.Error(err)
	}
	if again := parseFile(t, filepath.Join(dir, "machine.yaml")); again.API.Issuer.Key.Reveal() == m.API.Issuer.Key.Reveal() {
		t.Error("two nodes have the same key")
	}
}

// Further nodes and clients are of the same CA.
func TestConfigCA(t *testing.T) {
	one, two := t.TempDir(), t.TempDir()
	ca := filepath.Join(one, "ca.pem")
	for _, args := range [][]string{
		{"generate", "--output", one},
		{"generate", "--output", two, "--ca", ca},
		{"client", "--ca", ca, "--role", "operator", "--name", "alice", "--context", "home", "--address", "node1:50000", "--output", filepath.Join(two, "alice.yaml")},
	} {
		if _, _, err := runConfig(t, args...); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(filepath.Join(two, "ca.pem")); !os.IsNotExist(err) {
		t.Errorf("another CA: %v", err)
	}
	a, b := parseFile(t, filepath.Join(one, "machine.yaml")), parseFile(t, filepath.Join(two, "machine.yaml"))
	if a.API.ClientCAs != b.API.ClientCAs || a.API.Issuer.Certificate == b.API.Issuer.Certificate {
		t.Error("the CA is another, or the issuer is not")
	}
	name := filepath.Join(two, "alice.yaml")
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	contexts, err := config.ParseContexts(name, data)
	if err != nil {
		t.Fatal(err)
	}
	home := contexts.Contexts["home"]
	if contexts.Current != "home" || home.Nodes[0] != "node1:50000" || home.CA != a.API.ClientCAs {
		t.Errorf("contexts are %+v", contexts)
	}
	certs, err := config.Certificates(home.Identity.Certificate)
	if err != nil {
		t.Fatal(err)
	}
	if role, err := identity.RoleOf(certs[0]); err != nil || role != identity.Operator || certs[0].Subject.CommonName != "alice" {
		t.Errorf("%s has role %q, %v", certs[0].Subject, role, err)
	}
}

func TestConfigRefused(t *testing.T) {
	dir := t.TempDir()
	machine := filepath.Join(dir, "machine.yaml")
	for _, tt := range []struct {
		args []string
		want string
		code int
	}{
		{[]string{"generate", "--hostname", "a_b"}, `machine.yaml:3:11: hostname: "a_b", want labels`, exitUsage},
		{[]string{"generate", "--context", "a b"}, "contexts.a b: want a name of letters", exitUsage},
		{[]string{"generate", "--life", "0s"}, "--life 0s, want more than 0", exitUsage},
		{[]string{"generate", "--ca", filepath.Join(dir, "none")}, "no such file", exitNotFound},
		{[]string{"client", "--ca", machine, "--role", "reader"}, "machine.yaml: no certificate, want PEM with CERTIFICATE blocks; want the ca.pem of 'kiln config generate'", exitUsage},
		{[]string{"validate", filepath.Join(dir, "none")}, "no such file", exitNotFound},
		{[]string{"validate", machine}, "machine.yaml:1:1: key \"apiVersion\" is missing\n", exitUsage},
	} {
		if err := os.WriteFile(machine, []byte("kind: Time\nx: 1\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		args := tt.args
		if args[0] != "validate" {
			args = append(args, "--output", filepath.Join(dir, "out"))
		}
		_, code, err := runConfig(t, args...)
		if err == nil || !strings.Contains(err.Error(), tt.want) || code != tt.code {
			t.Errorf("%v: %d, %v\nwant %d, %s", tt.args, code, err, tt.code, tt.want)
		}
		if _, err := os.Stat(filepath.Join(dir, "out")); !os.IsNotExist(err) {
			t.Errorf("%v leaves files", tt.args)
		}
	}
}

// What goes into an image is a configuration that the node understands.
func TestConfigOfImage(t *testing.T) {
	name := filepath.Join(t.TempDir(), "machine.yaml")
	for text, want := range map[string]string{
		"apiVersion: v1alpha1\nkind: Hostname\nhostname: node1\n":           "",
		"apiVersion: v1alpha1\nkind: Hostname\nhostname: a_b\nservers: x\n": name + ":3:11: hostname: \"a_b\", want labels",
		"free text": name + ":1:1: ",
	} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := validConfig(t.Context(), name)
		if want == "" {
			if err != nil || string(got) != text {
				t.Errorf("%q: %v, want it as it is", text, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), want) || exitCode(t.Context(), err) != exitUsage {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
}

func TestConfigValidate(t *testing.T) {
	dir := t.TempDir()
	good, bad := filepath.Join(dir, "good.yaml"), filepath.Join(dir, "bad.yaml")
	for name, text := range map[string]string{good: "apiVersion: v1alpha1\nkind: Time\n", bad: "apiVersion: v1alpha1\nkind: Time\nservers: a\nx: 1\n"} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	out, _, err := runConfig(t, "validate", good)
	if err != nil || !strings.HasPrefix(out, good+": valid, sha256:") {
		t.Errorf("%q, %v", out, err)
	}
	out, code, err := runConfig(t, "validate", "--json", good, bad)
	if err == nil || code != exitUsage || strings.Count(err.Error(), "\n") != 1 {
		t.Errorf("%d, %v", code, err)
	}
	var got []validation
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatalf("%s\n%v", out, err)
	}
	if len(got) != 2 || !got[0].Valid || len(got[0].Problems) != 0 || got[1].Valid || len(got[1].Problems) != 2 ||
		got[1].Problems[0] != (problem{3, 10, "servers: a single value, want a list"}) {
		t.Errorf("%+v", got)
	}
}

func TestConfigSchema(t *testing.T) {
	out, _, err := runConfig(t, "schema")
	if err != nil || !json.Valid([]byte(out)) {
		t.Errorf("%v\n%s", err, out)
	}
}

func parseFile(t *testing.T, name string) *config.Config {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	c, err := config.Parse(name, data)
	if err != nil {
		t.Fatal(err)
	}
	return c
}
