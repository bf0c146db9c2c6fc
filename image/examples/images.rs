//! Works on a store by hand: `images STORE load|save|pull|push|list|remove ARGUMENT...`.

use std::error::Error;
use std::io;

use image::{Client, RegistryOptions, SaveFormat, Store};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let [store, command @ ..] = &*arguments else {
        return Err("usage: images STORE load|save|pull|push|list|remove ARGUMENT...".into());
    };
    let store = Store::open(store.as_ref())?;
    let client = Client::new(RegistryOptions::default());
    match command {
        ["load"] => println!("{:?}", store.load(io::stdin().lock())?),
        ["save", names @ ..] => store.save(names, SaveFormat::Docker, io::stdout().lock())?,
        ["pull", name] => println!("{:?}", store.pull(&client, &name.parse()?, &())?),
        ["push", image, name] => println!("{}", store.push(&client, image, &name.parse()?)?),
        ["remove", name] => drop(store.remove(name)?),
        _ => {
            for image in store.images()? {
                println!("{} {} {:?}", image.id, image.size, store.disk(&image)?);
            }
        }
    }
    Ok(())
}
