package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/kilnhq/kiln/internal/strictyaml"
	"github.com/kilnhq/kiln/machine/config"
)

func newConfig() *cobra.Command {
	c := &cobra.Command{Use: "config", Short: "Generate and validate machine configurations"}
	c.AddCommand(newConfigGenerate(), newConfigClient(), newConfigValidate(), newConfigSchema())
	return c
}

func newConfigValidate() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "validate FILE…",
		Short: "Say all that is wrong with machine configurations",
		Long: `Say all that is wrong with machine configurations, each with file, line and column.
FILE is - for standard input. Exits with 2 if anything is wrong.`,
		Example: "  kiln config validate machine.yaml\n  kiln config validate --json - <machine.yaml",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			var results []validation
			var problems []strictyaml.Problem
			for _, name := range args {
				v, err := validate(name)
				if err != nil {
					return err
				}
				results = append(results, v)
				problems = append(problems, v.problems...)
			}
			out := c.OutOrStdout()
			if asJSON {
				e := json.NewEncoder(out)
				e.SetIndent("", "  ")
				if err := e.Encode(results); err != nil {
					return err
				}
			} else {
				for _, v := range results {
					if v.Valid {
						fmt.Fprintf(out, "%s: valid, %s\n", v.File, v.Digest)
					}
				}
			}
			if len(problems) > 0 {
				return &strictyaml.Error{Problems: problems}
			}
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "write a list of results as JSON to standard output")
	return c
}

// A validation is what 'kiln config validate --json' says about a file.
type validation struct {
	File     string    `json:"file"`
	Valid    bool      `json:"valid"`
	Digest   string    `json:"digest,omitempty"` // as the node shows it
	Problems []problem `json:"problems"`

	problems []strictyaml.Problem
}

type problem struct {
	Line   int    `json:"line,omitempty"`
	Column int    `json:"column,omitempty"`
	Text   string `json:"text"`
}

func validate(name string) (validation, error) {
	v := validation{File: name, Problems: []problem{}}
	var data []byte
	var err error
	if name == "-" {
		v.File = "standard input"
		data, err = io.ReadAll(io.LimitReader(os.Stdin, configLimit+1))
	} else {
		data, err = readLimited(name, configLimit)
	}
	if err != nil {
		return v, err
	}
	parsed, err := config.Parse(v.File, data)
	var invalid *strictyaml.Error
	if errors.As(err, &invalid) {
		v.problems = invalid.Problems
		for _, p := range invalid.Problems {
			v.Problems = append(v.Problems, problem{p.Line, p.Column, p.Text})
		}
		return v, nil
	} else if err != nil {
		return v, err
	}
	v.Valid = true
	v.Digest, err = config.Digest(parsed)
	return v, err
}

func newConfigSchema() *cobra.Command {
	return &cobra.Command{
		Use:     "schema",
		Short:   "Write the JSON Schema of machine configurations",
		Long:    "Write the JSON Schema (draft 2020-12) of one document of a machine configuration,\nfor editors. 'kiln config validate' knows more.",
		Example: "  kiln config schema >kiln.schema.json",
		Args:    args(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			data, err := config.Schema()
			if err != nil {
				return err
			}
			_, err = c.OutOrStdout().Write(data)
			return err
		},
	}
}
