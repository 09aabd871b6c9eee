package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kilnhq/kiln/internal/atomicfile"
	"github.com/kilnhq/kiln/machine/config"
	"github.com/kilnhq/kiln/machine/config/identity"
)

// clientLife is how long certificates of clients are valid unless said otherwise.
const clientLife = 365 * 24 * time.Hour

// clientFlags are what makes a client.
type clientFlags struct {
	ca, name, context, role string
	addresses               []string
	life                    time.Duration
	force                   bool
}

func (f *clientFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&f.name, "name", "admin", "name of the client, for logs")
	c.Flags().StringVar(&f.context, "context", "default", "name of the client's context")
	c.Flags().StringArrayVar(&f.addresses, "address", nil, "name or address that the node is reached by (repeatable)")
	c.Flags().DurationVar(&f.life, "life", clientLife, "how long the client's certificate is valid")
	c.Flags().BoolVar(&f.force, "force", false, "replace files that are there")
}

func newConfigGenerate() *cobra.Command {
	var f clientFlags
	var hostname, disk, output string
	f.role = string(identity.Admin)
	c := &cobra.Command{
		Use:   "generate",
		Short: "Make a machine configuration with new secrets, and a client",
		Long: `Make three files that only their owner can read:

  machine.yaml   for the node: its name, its disk, and what it issues its certificate with
  client.yaml    for ~/.config/kiln/nodes.yaml: a context with an administrator's certificate
  ca.pem         the CA's certificate and key: keep it, it makes further nodes and clients

With --ca the node is one more of those of a CA that is there; ca.pem is not
written then.`,
		Example: "  kiln config generate --hostname node1 --address 192.0.2.10 --install-disk /dev/nvme0n1\n  kiln config generate --ca ca.pem --hostname node2 --address 192.0.2.11 --output node2",
		Args:    args(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			files, err := generate(rand.Reader, time.Now(), f, hostname, disk)
			if err != nil {
				return err
			}
			return writeSecrets(c.OutOrStdout(), output, files, f.force)
		},
	}
	f.add(c)
	c.Flags().StringVar(&f.ca, "ca", "", "use the CA in this file, which an earlier 'kiln config generate' made")
	c.Flags().StringVar(&hostname, "hostname", "", "name of the node")
	c.Flags().StringVar(&disk, "install-disk", "", "disk that the node is installed onto when it starts from something else")
	c.Flags().StringVarP(&output, "output", "o", ".", "directory for the files")
	return c
}

func newConfigClient() *cobra.Command {
	var f clientFlags
	var output string
	c := &cobra.Command{
		Use:     "client",
		Short:   "Make a client with a role",
		Long:    "Make a context with a certificate for ~/.config/kiln/nodes.yaml. The role is admin,\noperator or reader; nodes need not be told.",
		Example: "  kiln config client --ca ca.pem --role reader --name alice --address 192.0.2.10 --output alice.yaml",
		Args:    args(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			ca, err := loadCA(f.ca)
			if err != nil {
				return err
			}
			client, err := f.client(rand.Reader, time.Now(), ca)
			if err != nil {
				return err
			}
			return writeSecrets(c.OutOrStdout(), filepath.Dir(output), []secretFile{{filepath.Base(output), client}}, f.force)
		},
	}
	f.add(c)
	c.Flags().StringVar(&f.ca, "ca", "ca.pem", "the CA's certificate and key")
	c.Flags().StringVar(&f.role, "role", string(identity.Reader), "admin, operator or reader")
	c.Flags().StringVarP(&output, "output", "o", "client.yaml", "file to write")
	return c
}

// A secretFile is a file that only its owner can read.
type secretFile struct {
	name string
	data []byte
}

// generate returns the files of 'kiln config generate'. The keys are from
// random.
func generate(random io.Reader, now time.Time, f clientFlags, hostname, disk string) ([]secretFile, error) {
	var files []secretFile
	var ca *identity.Authority
	var err error
	if f.ca != "" {
		ca, err = loadCA(f.ca)
	} else if ca, err = identity.NewCA(random, now, "kiln CA"); err == nil {
		var pair config.KeyPair
		if pair, err = ca.KeyPair(); err == nil {
			files = append(files, secretFile{"ca.pem", []byte(pair.Certificate + pair.Key.Reveal())})
		}
	}
	if err != nil {
		return nil, err
	}
	node := "kiln node"
	if hostname != "" {
		node += " " + hostname
	}
	issuer, err := ca.NewIssuer(random, now, node)
	if err != nil {
		return nil, err
	}
	pair, err := issuer.KeyPair()
	if err != nil {
		return nil, err
	}
	machine := config.Config{API: &config.API{Names: f.addresses, Issuer: pair, ClientCAs: ca.Certificate()}}
	if hostname != "" {
		machine.Hostname = &config.Hostname{Hostname: hostname}
	}
	if disk != "" {
		machine.Install = &config.Install{Disk: disk}
	}
	data, err := config.Encode(&machine)
	if err != nil {
		return nil, err
	}
	if _, err := config.Parse("machine.yaml", data); err != nil {
		return nil, usageError{err}
	}
	client, err := f.client(random, now, ca)
	if err != nil {
		return nil, err
	}
	return append(files, secretFile{"machine.yaml", data}, secretFile{"client.yaml", client}), nil
}

// client returns a file of contexts with one new client.
func (f *clientFlags) client(random io.Reader, now time.Time, ca *identity.Authority) ([]byte, error) {
	role, err := identity.ParseRole(f.role)
	if err != nil {
		return nil, usageError{fmt.Errorf("--role: %w", err)}
	}
	if f.life <= 0 {
		return nil, usageError{fmt.Errorf("--life %v, want more than 0", f.life)}
	}
	pair, err := ca.NewClient(random, now, f.life, role, f.name)
	if err != nil {
		return nil, err
	}
	data, err := config.EncodeContexts(&config.Contexts{Current: f.context, Contexts: map[string]config.Context{
		f.context: {Nodes: f.addresses, CA: ca.Certificate(), Identity: pair},
	}})
	if err != nil {
		return nil, err
	}
	if _, err := config.ParseContexts("client.yaml", data); err != nil {
		return nil, usageError{err}
	}
	return data, nil
}

// loadCA reads the certificate and key of a CA, one behind the other.
func loadCA(name string) (*identity.Authority, error) {
	data, err := readLimited(name, configLimit)
	if err != nil {
		return nil, err
	}
	certificate, key, _ := strings.Cut(string(data), "-----BEGIN PRIVATE KEY-----")
	if key != "" {
		key = "-----BEGIN PRIVATE KEY-----" + key
	}
	ca, err := identity.Load(config.KeyPair{Certificate: certificate, Key: config.NewSecret(key)})
	if err != nil {
		return nil, usageError{fmt.Errorf("%s: %w; want the ca.pem of 'kiln config generate'", name, err)}
	}
	return ca, nil
}

// writeSecrets writes files, all of which must be new unless force is set.
func writeSecrets(out io.Writer, dir string, files []secretFile, force bool) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return outputError{err}
	}
	for _, f := range files {
		if _, err := os.Lstat(filepath.Join(dir, f.name)); err == nil && !force {
			return outputError{fmt.Errorf("%s is there already; --force replaces it", filepath.Join(dir, f.name))}
		} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return outputError{err}
		}
	}
	for _, f := range files {
		name := filepath.Join(dir, f.name)
		if err := atomicfile.WriteFile(name, f.data, 0o600); err != nil {
			return writing(name, err)
		}
		fmt.Fprintln(out, name)
	}
	return nil
}
